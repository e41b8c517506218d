"""The data stages: from video files to two sets of WebDataset shards. What feeds what, in pipelines/data.py:

    candidates, rejected = sources.find_candidates(src, videos_root, files)   "" for the packaged clips
    videos  = INGEST(IngestRun, candidates)                 one item a file                    -> Video
    videos, more = sources.drop_duplicates(videos)
    parts   = cut.segments(videos, data)                    train or heldout, by source        -> Segment
    clips   = CUT(CutRun, parts)                            one item a part of a video         -> Clip | Rejected, ...
    tracked = TRACK(TrackRun, gates.to_track(clips))        one item a group of its clips      -> Clip, ...
    encoded = ENCODE(EncodeRun, gates.to_encode(tracked))   one item a group                   -> Clip | Rejected, ...
    kept, copies = gates.apply_gates(encoded, gates)        also duplicates across all videos
    kept    = splits.settle_splits(kept, log)               by time if one source is left
    scenes  = scene.plan_scenes(data, kept, seed, log)                                         -> SceneItem
    renders = RENDER, TRACK, ENCODE                         one item a scene, then as above
    files   = SHARD(ShardRun, shard.plan_shards(kept + renders))   one item a shard            -> ShardFile
    train, heldout = PACK(PackRun, PackInputs)              once
    real, synthetic = PACK_PARTS(PackRun, PartsInputs)      once, of train, where clips are generated (data.synthetic)
    page    = DATA_PAGE(DataPageRun, (*clips, *rejected, train, heldout))   once

CUT, TRACK and ENCODE run as one graph (infra/graph.py). `configs.run_configs(data, model)` makes the config of every stage. A
Reject's message is "name: reason"; `sources.listed(stage, message)` makes of it the Rejected that PACK lists. Records that a
store must know besides those of stages.records: Candidate, Segment, Still, SceneItem, ShardPlan, ShardFile. Readers:
loader.Loader (training batches), loader.list_samples (samples by metadata, loaded one by one). TRACK, ENCODE and PACK hard-link
files into their own folder and add others: no published folder is written to.
"""
