"""`mongars replay` for real: papermill, a kernel, the same sha256; and what it does not do."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import clean_environment
from typer.testing import CliRunner

from mongars.base.errors import Conflict
from mongars.base.ledger import Run, find_run, read_json, runs, write_json
from mongars.base.settings import read_settings
from mongars.growth.evaluation import TOO_LITTLE
from mongars.growth.slices import earlier
from mongars.neurons.query_map import QueryMap, read, write
from mongars.serving import replays
from mongars.serving.cli import app


def mongars(home: Path, *words: str, code: int = 0) -> str:
    """What a command says."""
    done = CliRunner().invoke(app, words, env=clean_environment() | {"MONGARS_HOME": str(home)})
    assert done.exit_code == code, done.output + str(done.exception)
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Run:
    """A small run of self_training, on planted conversations."""
    home = tmp_path_factory.mktemp("replay") / "home"
    words = [
        "-p",
        "things=10",
        "-p",
        "sides=16",
        "-p",
        "seed=1",
        "-p",
        "latency_ratio=50",
    ]  # whatever else goes on
    row = json.loads(mongars(home, "run", "self_training", *words, "--json"))
    assert row["result"]["outcome"] == "accepted", row
    return find_run(home, row["run"])


def home_of(run: Run) -> Path:
    return run.folder.parents[2]


def test_a_repeat_learns_the_same_bits_counts_for_nothing_and_names_what_it_repeats(trained):
    home, before = home_of(trained), {p: p.read_bytes() for p in trained.folder.iterdir() if p.is_file()}
    told = json.loads(mongars(home, "replay", trained.id, "--json"))
    assert told["same"] and told["repeats"] == trained.id and told["run"] != trained.id
    [weights] = [row for row in told["compared"] if row["what"] == "map/map.safetensors"]
    assert weights["then"] == weights["now"] == trained.row()["result"]["weights_sha256"]
    again = find_run(home, told["run"])
    assert read_json(again.folder / "params.json")["repeats"] == trained.id == again.first.id
    assert again.row()["result"]["outcome"] == trained.row()["result"]["outcome"]
    assert {p: p.read_bytes() for p in trained.folder.iterdir() if p.is_file()} == before
    # Nothing serves, no verdict is counted twice, and the held-out questions were asked once.
    assert not (home / "adapters").exists()
    asked = "SELECT v.run, (SELECT count(*) FROM runs WHERE repeats = v.run) AS repeats FROM verdicts v"
    assert json.loads(mongars(home, "sql", asked, "--json")) == [{"run": trained.id, "repeats": 1}]
    assert [one.run for one in earlier(home, "planted", again)] == []  # as when the first one began
    assert not (again.folder / "slice.json").exists() and (trained.folder / "slice.json").exists()
    assert f"repeats: {trained.id}; the same came out" in mongars(home, "report", again.id)


def test_a_record_that_was_changed_is_told_and_not_repeated(trained, tmp_path):
    settings = read_settings(_env_file=None, home=tmp_path)
    shutil.copytree(home_of(trained) / "runs", tmp_path / "runs")
    run, count = find_run(tmp_path, trained.id), len(runs(tmp_path))
    params = read_json(run.folder / "params.json")
    write_json(run.folder / "params.json", params | {"params": run.params | {"seed": 4}})
    with pytest.raises(Conflict, match="seed is 4 in params.json, and 1 in the notebook that was executed"):
        replays.replay(Run(run.folder), settings)
    write_json(run.folder / "params.json", params)
    environment = read_json(run.folder / "environment.json")
    other = environment | {"packages": environment["packages"] | {"numpy": "1.0"}, "commit": "f" * 40}
    write_json(run.folder / "environment.json", other)
    told = {row["what"]: row["then"] for row in replays.check(run, settings)}
    assert told["numpy"] == "1.0" and told["commit"] == "f" * 40
    weights = run.folder / "map" / "map.safetensors"
    weights.chmod(0o600)
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(Conflict, match="none of its files has the hash"):
        replays.replay(run, settings)
    run.close_for_replay("a person took back their consent")
    with pytest.raises(Conflict, match="is not replayable: a person took back their consent"):
        replays.replay(run, settings)
    assert len(runs(tmp_path)) == count


def test_weights_that_the_run_never_learnt_are_found_out_and_not_judged(trained, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(home_of(trained) / "runs", home / "runs")
    run = find_run(home, trained.id)
    query_map, card = read(run.folder / "map")
    shutil.rmtree(run.folder / "map")
    forged = write(run.folder / "map", QueryMap(query_map.matrix.T.copy()), card)
    result = run.row()["result"]
    run.finish(result | {"weights_sha256": forged.weights_sha256})
    told = json.loads(mongars(home, "replay", run.id, "--json", code=1))
    same = {row["what"]: row["same"] for row in told["compared"]}
    assert not told["same"] and not same["weights_sha256"] and not same["outcome"] and same["metrics"]
    again = find_run(home, told["run"]).row()["result"]
    assert (
        again["outcome"] == TOO_LITTLE
        and "not what the run" in again["reasons"][0]
        and again["verdict"] is None
    )
