"""make export: the run's newest models, or a named one, for diffusers, with a model card that works."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from infra.codec import Codec
from infra.store import Store
from msmodel.config import ImageEncoderConfig
from msmodel.dit import WanDiT
from msmodel.io.backbones import load_backbone
from msmodel.io.export import write_diffusers
from msmodel.io.weights import load_teacher, save_weights
from pipelines.commands import cli
from pipelines.commands.model_card import Facts, card
from pipelines.run import RECORDS
from stages.records import Checkpoint, ShardSet
from stages.train.dmd import DMD, DmdRun
from stages.train.publish import initial_dit, publish
from stages.train.sampling import Guidance
from stages.train.state import SavedTensors
from stages.train.teacher import TEACHER, TeacherRun
from tests.fakes import FakeContext
from tests.unit.pipelines.commands.test_cli import make
from tests.unit.stages.train.methods import alive, dmd_config, seeing, small, teacher_config, train_dmd, train_teacher

DATA = ShardSet("/data/train", "train", ("a.tar",), 64, 64, 0, "f00d" * 16, "")


def made(
    root: Path, finished: str, image: str = "channels", stage=TEACHER, parent: Checkpoint | None = None
) -> Checkpoint:
    """Trains, and publishes as a run does: weights, the training's saves, and the manifest."""
    model, store = small(image), Store(root, Codec(RECORDS, root))
    config = TeacherRun(model, teacher_config()) if stage is TEACHER else DmdRun(model, dmd_config(), Guidance())
    step = store.step(stage.name, stage.version, config, (finished,), 3)
    step.folder.mkdir(parents=True)
    ctx = FakeContext(step.folder)
    if stage is TEACHER:
        save_weights(alive(WanDiT, model, 9), root.parent / "base", {})
        start = initial_dit(model, str(root.parent / "base"), None, 0)[1]
        checkpoint = publish("teacher", train_teacher(ctx, model), 4, ctx, data=DATA, start=start)
    else:
        parents = (parent.digest,) if parent else ()
        checkpoint = publish("student", train_dmd(ctx, model)["generator"], 4, ctx, parents, data=DATA)
    store.publish(step, checkpoint, 12.5, provenance={"finished": finished, "git_sha": "abc123"})
    return checkpoint


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with two teachers and a student, all exported: (folder of exports, newest teacher, student, what was printed)."""
    runs = tmp_path_factory.mktemp("runs")
    root = runs / "debug"
    made(root, "2026-01-01T00:00:00+00:00", image="first_latent")
    teacher = made(root, "2026-02-02T00:00:00+00:00")
    student = made(root, "2026-02-03T00:00:00+00:00", stage=DMD, parent=teacher)
    report = {"provenance": {"checkpoints": {"teacher": {"digest": teacher.digest}, "student": {"digest": "other"}}}}
    report |= {k: {"teacher": {"epe": 1.25, "psnr": None}, "student": {"epe": 9.0}} for k in ("real", "rendered")}
    (root / "report").mkdir()
    (root / "report" / "report.json").write_text(json.dumps(report))
    assert cli.main(["export", "--preset", "debug", "--runs", str(runs)]) == cli.OK
    return root / "export", teacher, student


@pytest.mark.slow
def test_the_newest_models_are_exported_and_come_back_bit_for_bit(run):
    folder, teacher, student = run
    assert sorted(p.name for p in folder.iterdir()) == ["student", "teacher"]
    for checkpoint in (teacher, student):
        own = load_teacher(checkpoint.folder)
        for source in (folder / checkpoint.name, folder / checkpoint.name / "wan" / f"{checkpoint.name}.safetensors"):
            other = WanDiT(own.cfg)
            load_backbone(other, source)
            assert all(torch.equal(x, own.state_dict()[n]) for n, x in other.state_dict().items())


@pytest.mark.slow
def test_raw_weights_are_those_before_averaging(run):
    folder, teacher, _ = run
    save = sorted((Path(teacher.folder).parent / "saves").iterdir())[-1]
    trained = {
        n.removeprefix("weight/"): x for n, x in SavedTensors(save, "dit.state").items() if n.startswith("weight/")
    }
    raw = WanDiT(small())
    load_backbone(raw, folder / "teacher" / "raw")
    averaged = load_teacher(teacher.folder).state_dict()
    assert all(torch.equal(x, trained[n]) for n, x in raw.state_dict().items())
    assert any(not torch.equal(x, averaged[n]) for n, x in trained.items())


@pytest.mark.slow
def test_the_card_is_complete(run):
    folder, teacher, _ = run
    card = ModelCard.load(folder / "teacher" / "README.md")
    assert card.data.license == "apache-2.0" and card.data.pipeline_tag == "image-to-video"
    assert "motion-control" in card.data.tags and card.data.library_name == "diffusers"
    text = card.text
    for part in (
        *(
            "| preset | debug |",
            "| seed | 3 |",
            "| steps | 4 |",
            "| code (git) | abc123 |",
            "| seconds of training | 12.5 |",
        ),
        *(
            f"64 clips, digest {DATA.digest}",
            teacher.digest,
            "noise 16, mask 2, image 16, track 4",
            '"phase2_steps": 1',
        ),
        *("| epe | 1.25 | 1.25 |", "as saved after step 4", "/base (Wan of width 32", "lucas_kanade (Apache-2.0)"),
    ):
        assert part in text, part
    assert "not recorded" not in text and "psnr" not in text


def test_a_student_names_its_teachers_start_and_no_figures_of_other_weights(run):
    folder, _, _ = run
    text = (folder / "student" / "README.md").read_text()
    assert "/base (Wan of width 32" in text
    assert "has not been evaluated" in text and "9" not in text.split("## Figures")[1].split("##")[0]
    assert "c1s1w1, 3 steps" in text


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_the_cards_code_runs(run, name, monkeypatch):
    folder = run[0] / name
    monkeypatch.chdir(folder)
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    assert len(blocks) == 2
    first, second = {}, {}
    exec(blocks[0], first)
    exec(blocks[1], second)
    assert first["velocity"].shape == first["noisy"].shape and first["velocity"].isfinite().all()
    assert torch.equal(second["model"].proj_out.weight, first["transformer"].proj_out.weight)


@pytest.mark.slow
def test_a_named_folder_is_exported_even_without_a_manifest_and_its_card_says_what_is_not_known(
    tmp_path, monkeypatch, capsys
):
    model = small("first_latent")
    save_weights(alive(WanDiT, model), tmp_path / "mine", {"name": "tuned", "step": 9, "start": {}})
    words = ["export", "--preset", "debug", "--runs", str(tmp_path / "runs"), "--checkpoint", str(tmp_path / "mine")]
    assert cli.main([*words, "export.licence=other"]) == cli.OK
    folder = tmp_path / "runs" / "debug" / "export" / "tuned"
    assert str(folder) in capsys.readouterr().out
    text = (folder / "README.md").read_text()
    assert "not there: no saved training states" in text and "| training data | not recorded |" in text
    assert ModelCard(text).data.license == "other"
    assert not (folder / "raw").exists()
    monkeypatch.chdir(folder)
    space: dict = {}
    exec(re.findall(r"```python\n(.*?)```", text, re.S)[0], space)
    assert space["velocity"].shape == space["noisy"].shape


def test_a_card_for_a_model_that_reads_latents_of_tracks_has_no_head_in_its_code(tmp_path):
    facts = Facts("teacher", "debug", small(), "d", {}, "apache-2.0", "not there", "exact", head=False)
    text = card(facts)
    assert "latents of a canvas" in text and "conv3d" not in text and "empty: tracks come as latents" in text


@pytest.mark.slow
def test_an_earlier_export_is_replaced_whole_and_kept_when_a_new_one_fails(tmp_path, capsys):
    save_weights(alive(WanDiT, small()), tmp_path / "mine", {"name": "tuned", "step": 9})
    words = ["export", "--preset", "debug", "--runs", str(tmp_path), "--checkpoint", str(tmp_path / "mine")]
    assert cli.main(words) == cli.OK
    folder = tmp_path / "debug" / "export" / "tuned"
    (folder / "stale").touch()
    assert cli.main(words) == cli.OK
    assert not (folder / "stale").exists()
    file = tmp_path / "mine" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    assert cli.main(words) == cli.FAILED
    assert "damaged or truncated" in capsys.readouterr().err
    assert (folder / "README.md").is_file()
    assert [p.name for p in folder.parent.iterdir()] == ["tuned"]


@pytest.mark.slow
def test_nothing_to_export_is_one_line(tmp_path, capsys):
    assert cli.main(["export", "--preset", "debug", "--runs", str(tmp_path)]) == cli.FAILED
    assert "`make teacher` and `make distill` make them" in capsys.readouterr().err
    save_weights(torch.nn.Linear(1, 1), tmp_path / "vae", {})
    words = ["export", "--preset", "debug", "--runs", str(tmp_path), "--checkpoint", str(tmp_path / "vae")]
    assert cli.main(words) == cli.FAILED
    assert "no checkpoint of a transformer" in capsys.readouterr().err
    assert cli.main(["export", "--runs", str(tmp_path), "export.shard_gb=0"]) == cli.BAD_CONFIG


def test_make_hands_the_folder_on():
    assert make("export", "CHECKPOINT=a b")[0].startswith(".venv/bin/motionstream export --checkpoint 'a b'")
    assert "--checkpoint" not in make("export")[0]


def test_the_card_of_a_model_with_the_image_branch_names_the_encoder_and_gives_the_branch_tokens(tmp_path, monkeypatch):
    model = seeing()
    model = replace(
        model, text=replace(model.text, length=512), image_encoder=ImageEncoderConfig("Wan-AI/Wan2.1-I2V", "crop")
    )
    dit = alive(WanDiT, model)
    facts = Facts("teacher", "debug", model, "d", {}, "apache-2.0", "not there", "exact")
    text = card(facts)
    assert "| image encoder | Wan-AI/Wan2.1-I2V, given the first frame's middle square |" in text
    assert "image encoder" not in card(replace(facts, model=small()))
    write_diffusers(dit, tmp_path, 5.0)
    monkeypatch.chdir(tmp_path)
    space: dict = {}
    exec(re.findall(r"```python\n(.*?)```", text, re.S)[0], space)
    assert space["clip"].shape == (1, 257, 20) and space["clip"].any()
    blind = torch.zeros_like(space["clip"])
    with torch.no_grad():
        other = space["transformer"](space["inputs"], 1000 * space["t"], space["text"], blind).sample
    assert not torch.allclose(other, space["velocity"])


@pytest.mark.parametrize(
    ("tracker", "chosen", "licence", "remark"),
    [
        ("lucas_kanade (Apache-2.0)", "", "apache-2.0", False),
        ("cotracker3_offline (CC-BY-NC-4.0)", "", "other", True),
        ("cotracker3_offline (CC-BY-NC-4.0)", "cc-by-nc-4.0", "cc-by-nc-4.0", True),
        ("lucas_kanade (Apache-2.0)", "mit", "mit", False),
    ],
)
def test_the_card_of_a_model_whose_labels_are_a_noncommercial_trackers_says_so(tracker, chosen, licence, remark):
    made = ModelCard(card(Facts("teacher", "debug", small(), "d", {}, chosen, "not there", tracker)))
    assert made.data.license == licence
    assert f"\n{licence}, as far as" in made.text and tracker in made.text
    assert ("noncommercial use" in made.text) == remark
