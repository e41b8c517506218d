"""The data stages: from files to two sets of WebDataset shards. What feeds what, for pipelines/data.py:

    candidates, rejected = sources.find_candidates(src)              "" gives the packaged clips
    videos  = INGEST(IngestRun(clip, min_side_px, ...), candidates)  one item a file        -> Video
    videos, more = sources.drop_duplicates(videos)
    sources.require_usable(videos, rejected, src)                    StageError with every reason
    parts   = cut.segments(videos, data)                             train or heldout, by source
    clips   = CUT(CutRun(clip, overlap, variants, ...), parts)       one a part of a video  -> Clip | Rejected, ...
    clips   = splits.settle_splits(clips, say)                       by time where one source is left
    scenes  = scene.plan_scenes(data, clips, seed, say)
    renders = RENDER(RenderRun(clip, motions, ...), scenes)          one a scene            -> Clip, ...
    groups  = track.group_clips(clips + renders)
    clips   = TRACK(TrackRun(tracker, grid_rows, grid_cols), groups) one a group of clips   -> Clip, ...
    clips   = ENCODE(EncodeRun(clip, vae, text, digest), track.group_clips(clips))  -> Clip | Rejected, ...
    train, heldout = PACK(PackRun(clip, clips_per_shard, lossless_frames), [*clips, *rejected])   once

`configs.run_configs(data, model)` makes all the ...Run configs. A Reject's message is "name: reason":
`sources.listed(stage, message)` makes of it the Rejected that PACK lists. Records that a store must know besides
stages.records: Candidate, Segment, Plate, SceneItem. Readers: loader.Loader (training batches), loader.read_samples (whole
samples). TRACK and ENCODE hard-link a clip's files into their own folder and add one: no published folder is written to.
"""
