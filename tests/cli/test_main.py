"""The command line from end to end, the work itself replaced: what goes where, exit codes, and Hydra's own ways."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from autotune.cli.main import main
from autotune.core.candidate import Candidate
from autotune.core.hardware import Hardware
from autotune.errors import AutotuneError, NothingFits, UsageError
from autotune.machine.host import read_host

CPU = Hardware(
    kind="cpu",
    name="a CPU",
    uuid="cpu-1",
    memory_bytes=2**34,
    free_bytes=2**33,
    used_by_others_bytes=0,
    cores=2,
    host_memory_bytes=2**34,
    host_free_bytes=2**33,
)
SEARCH = ["search", "model=tiny", "data=demo"]
RUN_FILE = """\
model: {path: tiny}
data: {path: demo}
device: cpu
recipe: {method: full, max_steps: 30}
candidate: {max_length: 128, per_device_train_batch_size: 2, gradient_accumulation_steps: 4, method: full}
"""


class Work:
    """Stands for the probe, the search and the run: notes what is asked of them and answers at once."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.hardware: list[Hardware] = []  # that searches and runs were given
        self.error: Callable[[Any], BaseException | None] = lambda request: None

    def probe(self, *, home: Path, refresh: bool, progress: Callable[[str], None], use_gpu: bool = True) -> Hardware:
        progress("measuring")
        self.asked.append({"home": home, "refresh": refresh})
        return CPU

    def read(self, request: Any, *, progress: Callable[[str], None]) -> str:
        progress("reading")
        return f"{request.model} on {request.data}"

    def judge(self, request: Any, workload: str, hardware: Hardware) -> None:
        assert workload == f"{request.model} on {request.data}"
        assert not hardware.rates  # nothing was measured yet

    def do(self, request: Any, workload: str, hardware: Hardware, *, display: Any) -> dict[str, Any]:
        print("a library that prints")
        assert workload == f"{request.model} on {request.data}"
        self.asked.append(request)
        self.hardware.append(hardware)
        if (error := self.error(request)) is not None:
            raise error
        return {"model": request.model, "seed": request.seed}


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Work]:
    """An empty working directory, a cache of its own, and nothing that really measures or trains."""
    stand_in = Work()
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("AUTOTUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("autotune.machine.probe.probe", stand_in.probe)
    monkeypatch.setattr("autotune.search.request.workload_of", stand_in.read)
    monkeypatch.setattr("autotune.train.run.workload_of", stand_in.read)
    monkeypatch.setattr("autotune.search.search.check_search", stand_in.judge)
    monkeypatch.setattr("autotune.train.run.check_run", stand_in.judge)
    monkeypatch.setattr("autotune.search.search.search", stand_in.do)
    monkeypatch.setattr("autotune.train.run.run", stand_in.do)
    monkeypatch.setattr("autotune.search.summary.summary_lines", lambda document: [f"found {document['model']}"])
    monkeypatch.setattr("autotune.train.run.summary_lines", lambda document: [f"trained {document['model']}"])
    yield stand_in
    assert [path.name for path in Path.cwd().iterdir() if path.name not in ("runs", "run.yaml", "conf")] == []


def test_a_search_gets_what_was_asked(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    """Words become a request; the summary goes to stdout, progress and whatever a library prints to stderr."""
    words = ["search", "model=Qwen/Qwen2.5-0.5B", "data=rows.jsonl", "recipe.lora_rank=4", "candidate.tf32=true"]
    assert main([*words, "budget=short"]) == 0
    _, request = work.asked
    assert (request.model, request.data, request.recipe.lora_rank) == ("Qwen/Qwen2.5-0.5B", "rows.jsonl", 4)
    assert (request.fixed, request.minutes, work.hardware) == ({"tf32": True}, 10.0, [CPU])
    assert (request.out.parent, request.out.name.endswith("-Qwen2.5-0.5B-rows")) == (Path("runs"), True)
    out, err = capsys.readouterr()
    assert out == "found Qwen/Qwen2.5-0.5B\n"
    assert err == "reading\nmeasuring\na library that prints\n"


def test_json_is_alone_on_stdout(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    """format=json: one object on stdout and nothing else."""
    assert main([*SEARCH, "format=json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"model": "tiny", "seed": 42}


def test_a_probe_prints_the_hardware(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    """probe takes home and refresh, and prints what it measured as an object or as lines."""
    assert main(["probe", "format=json", "refresh=true", "home=here"]) == 0
    assert work.asked == [{"home": Path("here"), "refresh": True}]
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(CPU.to_dict()))
    assert main(["probe"]) == 0
    assert capsys.readouterr().out.startswith("a CPU")


def test_a_probe_in_a_file_must_be_of_this_machine(
    work: Work, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """hardware=FILE.json is not measured again, but what trains here cannot follow another machine's memory."""
    file = tmp_path / "probe.json"
    file.write_text(json.dumps({**CPU.to_dict(), "uuid": read_host().uuid, "noise": 0.5}))
    assert main([*SEARCH, f"hardware={file}"]) == 0
    assert [hardware.noise for hardware in work.hardware] == [0.5]
    file.write_text(json.dumps({**CPU.to_dict(), "uuid": "CPU-of-another"}))
    assert main([*SEARCH, f"hardware={file}"]) == 2
    assert "expected one of the machine at hand" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "looks"), [(["hardware=cpu"], False), ([], True)])
def test_hardware_cpu_looks_at_no_gpu(
    work: Work, monkeypatch: pytest.MonkeyPatch, words: list[str], looks: bool
) -> None:
    """hardware=cpu: the probe is told not to look for one."""
    seen: list[bool] = []
    monkeypatch.setattr("autotune.machine.probe.probe", lambda *, use_gpu, **_: seen.append(use_gpu) or CPU)
    assert main([*SEARCH, *words]) == 0
    assert seen == [looks]


FORMLESS = '{"body": "no form has this column"}\n'
SHORT = '{"text": "one row"}\n'


@pytest.mark.parametrize(
    ("words", "rows", "said"),
    [
        (["search", "model=tiny"], FORMLESS, "fits no form"),
        (["search", "model=tiny"], SHORT, "the data has 1 row, fewer than one optimizer step"),
        (["search", "model=."], SHORT, "has no config.json"),
        (["run", "run.yaml"], FORMLESS, "fits no form"),
        (["estimate", "model=tiny"], FORMLESS, "fits no form"),
        (["estimate", "model=."], SHORT, "has no config.json"),
    ],
)
def test_what_the_files_tell_is_judged_before_the_machine_is_probed(
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    rows: str,
    said: str,
) -> None:
    """A wrong input ends with code 2 at once, and not after a probe of a minute."""
    measured: list[Any] = []
    monkeypatch.setattr("autotune.machine.probe.measure_in_process", lambda request, **_: measured.append(request))
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(RUN_FILE)
    Path("rows.jsonl").write_text(rows)
    assert main([*words, "data=rows.jsonl", f"home={home}", "refresh=true"]) == 2
    assert said in capsys.readouterr().err
    assert measured == []


@pytest.mark.parametrize("by", ["file", "directory"])
def test_a_run_takes_its_file(work: Work, by: str, capsys: pytest.CaptureFixture[str]) -> None:
    """FILE is a run file or its directory; words win over it and are handed on; results go beside it."""
    Path("run.yaml").write_text(RUN_FILE)
    assert main(["run", "run.yaml" if by == "file" else ".", "recipe.max_steps=3", "model=smollm2"]) == 0
    request = work.asked[-1]
    assert request.candidate == Candidate(
        max_length=128, per_device_train_batch_size=2, gradient_accumulation_steps=4, method="full"
    )
    assert (request.model, request.data, request.recipe.max_steps) == ("smollm2", "demo", 3)
    assert (request.out, list(request.overrides)) == (Path("run"), ["recipe.max_steps=3", "model=smollm2"])
    assert capsys.readouterr().out == "trained smollm2\n"


def test_the_runs_of_a_sweep_go_to_places_of_their_own(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    """With -m one object a line, and no job writes where another does."""
    Path("run.yaml").write_text(RUN_FILE)
    assert main(["run", "run.yaml", "-m", "seed=1,2", "format=json"]) == 0
    assert [json.loads(line)["seed"] for line in capsys.readouterr().out.splitlines()] == [1, 2]
    assert [request.out for request in work.asked if not isinstance(request, dict)] == [Path("run-0"), Path("run-1")]


def test_the_searches_of_a_sweep_go_to_places_of_their_own(work: Work) -> None:
    """Jobs that start in the same second do not share a directory."""
    assert main([*SEARCH, "-m", "recipe.method=full,lora"]) == 0
    outs = [request.out for request in work.asked if not isinstance(request, dict)]
    assert len(set(outs)) == 2


def test_searches_of_one_second_go_to_places_of_their_own(work: Work) -> None:
    """Two may start at once, and a clock may be set back: a directory that is there is another search's."""
    for _ in range(2):
        assert main(SEARCH) == 0
        work.asked[-1].out.mkdir(parents=True)
    first, second = (request.out.name for request in work.asked if not isinstance(request, dict))
    assert first != second


def test_a_failing_job_does_not_end_the_sweep(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    """The other jobs go on, each failure is told, and the exit code is that of the first."""
    work.error = lambda request: NothingFits(f"seed {request.seed} does not fit") if request.seed != 2 else None
    assert main([*SEARCH, "-m", "seed=1,2,3", "format=json"]) == 1
    out, err = capsys.readouterr()
    assert [json.loads(line)["seed"] for line in out.splitlines()] == [2]
    assert ("seed 1 does not fit" in err, "seed 3 does not fit" in err, "Traceback" in err) == (True, True, False)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UsageError("rows.jsonl:3: no field", "rows.jsonl:9: no field"), 2, "2 problems\n  rows.jsonl:3: no field\n"),
        (NothingFits("too large: try lora"), 1, "autotune: too large: try lora\n"),
        (
            KeyboardInterrupt(),
            130,
            "autotune: interrupted; what was measured and saved is kept (a search with the same out= continues)\n",
        ),
        (ZeroDivisionError("a bug"), 1, "autotune: ZeroDivisionError: a bug (debug=true shows where)\n"),
    ],
)
def test_exit_codes(work: Work, error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each end has its exit code and its words on stderr; stdout stays empty and no traceback is shown."""
    work.error = lambda request: error
    assert main([*SEARCH, "format=json"]) == code
    out, err = capsys.readouterr()
    assert (out, "Traceback" in err) == ("", False)
    assert said in err


COMMANDS_WITH_A_FAULT = {
    "probe": (["probe"], "autotune.machine.probe.probe"),
    "estimate": (["estimate", "model=tiny"], "autotune.predict.estimate.workload_of"),
    "search": (SEARCH, "autotune.search.search.search"),
    "run": (["run", "run.yaml"], "autotune.train.run.run"),
}


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("command", COMMANDS_WITH_A_FAULT)
def test_a_fault_of_ours_is_one_sentence(
    work: Work, command: str, debug: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In any command: one line without debug=true, however long the text of the error is; with it, where it was."""
    words, place = COMMANDS_WITH_A_FAULT[command]

    def fail(*arguments: Any, **keywords: Any) -> None:
        raise RuntimeError("the first line\nthe second line\n  the third line")

    Path("run.yaml").write_text(RUN_FILE)
    monkeypatch.setattr(place, fail)
    assert main([*words, *(["debug=true"] if debug else [])]) == 1
    out, err = capsys.readouterr()
    assert (out, "Traceback" in err, "in fail\n    raise RuntimeError" in err) == ("", debug, debug)
    said = [line for line in err.splitlines() if line.startswith("autotune")]
    assert said == ["autotune: RuntimeError: the first line (debug=true shows where)"]
    assert debug or "second line" not in err


def test_the_details_of_an_error_only_when_asked(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    """The last lines of a library are one sentence's background, and no problems of their own."""
    error = AutotuneError("tokenizing rows failed")
    error.details = ("a warning", "the library's own words")
    work.error = lambda request: error
    assert main(SEARCH) == 1
    assert capsys.readouterr().err.endswith("\nautotune: tokenizing rows failed\n")
    assert main([*SEARCH, "debug=true"]) == 1
    assert "a warning\nthe library's own words\nautotune: tokenizing rows failed\n" in capsys.readouterr().err


def test_a_traceback_only_when_asked(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    """debug=true shows where an error comes from."""
    work.error = lambda request: ZeroDivisionError("a bug")
    assert main([*SEARCH, "debug=true"]) == 1
    assert "in do\n    raise error" in capsys.readouterr().err


def test_mistakes_end_before_anything_is_done(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong words: exit code 2, all of them on stderr, nothing on stdout, nothing measured."""
    assert main(["search", "model=smolm2", "recipe.epohcs=3", "format=json"]) == 2
    out, err = capsys.readouterr()
    assert (out, work.asked) == ("", [])
    assert err.splitlines()[0] == "autotune: 3 problems"
    assert len(err.splitlines()) == 4


def test_a_mistake_that_only_one_job_makes_ends_that_job_alone(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    """Two values of a sweep may be wrong together though each is right: that job says so before it measures."""
    assert main([*SEARCH, "-m", "budget.minutes=3,null"]) == 2
    assert [request.minutes for request in work.asked if not isinstance(request, dict)] == [3.0]
    assert len(work.asked) == 2  # one probe, one search
    assert "budget.minutes and budget.trials are both null" in capsys.readouterr().err


def test_mistakes_in_the_file_and_on_the_line_come_together(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    """A run file's problems and the command line's are one message."""
    Path("run.yaml").write_text(RUN_FILE + "sede: 3\n")
    assert main(["run", "run.yaml", "recipe.lora_rank=0"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "autotune: 2 problems",
        "  run.yaml: sede=3: no such key; the nearest is seed",
        "  recipe.lora_rank=0: expected a whole number, at least 1",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["serach"], "serach: no such command, expected one of probe, estimate, search, run; the nearest is search"),
        (["run"], "FILE is missing: autotune run FILE, the run.yaml of a search or its directory"),
        (["search", "--nonsense"], "unrecognized arguments: --nonsense"),
        (
            ["search", "--cfg", "job", "-m"],
            "--run, --multirun, --cfg, --info and --shell-completion exclude each other",
        ),
        (["search", "--resolve"], "--resolve goes with --cfg"),
    ],
)
def test_mistakes_beside_the_keys(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong command, a missing file and wrong flags are usage errors like any other."""
    assert main(words) == 2
    assert capsys.readouterr().err == f"autotune: {said}\n"


def test_a_directory_that_is_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shell may stand in a directory that somebody has removed."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["probe"]) == 2
    assert capsys.readouterr().err == "autotune: the current directory is gone: change to one that exists\n"


def test_a_full_disk_is_one_sentence(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    """It names the file, and not the class of the error."""
    work.error = lambda request: OSError(28, "No space left on device", "runs/x/trials/0000/trial.json")
    assert main(SEARCH) == 1
    said = "autotune: runs/x/trials/0000/trial.json: No space left on device (debug=true shows where)\n"
    assert capsys.readouterr().err.endswith(said)


@pytest.mark.parametrize("out", ["runs/lr=1e-4", "runs/my run (2)", "runs/a&b;c", "runs/it's"])
def test_a_path_may_hold_what_hydra_s_grammar_refuses(work: Work, out: str) -> None:
    """A key that takes any text takes it as the shell gives it."""
    assert main([*SEARCH, f"out={out}"]) == 0
    assert work.asked[-1].out == Path(out)


def test_cfg_shows_and_does_nothing(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    """--cfg job prints the composed configuration, with a preset and flags anywhere among the words."""
    assert main(["search", "--cfg", "job", "experiment=demo", "-p", "recipe"]) == 0
    assert "effective_batch_size: 4\n" in capsys.readouterr().out
    assert work.asked == []


def test_untested_versions_are_told_once(
    work: Work, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a command that works, for all jobs of a sweep together; not where something is only shown."""
    monkeypatch.setattr("autotune.machine.installed.untested", lambda: ("tested with trl 1.16, found 1.17.0",))
    for words in (SEARCH, [*SEARCH, "-m", "seed=1,2"]):
        assert main(words) == 0
        said = capsys.readouterr().err
        assert said.count("tested with trl 1.16, found 1.17.0; predictions and rules may be off\n") == 1
    assert main([*SEARCH, "--cfg", "job"]) == 0
    assert main(["search", "--help"]) == 0
    assert "tested with" not in capsys.readouterr().err


def test_info_and_config_dir(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    """--info and --config-dir are Hydra's: options of one's own are found, and shown where they come from."""
    folder = Path("conf/experiment")
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# @package _global_\nseed: 7\n")
    assert main([*SEARCH, "--config-dir", "conf", "experiment=mine"]) == 0
    assert work.asked[-1].seed == 7
    capsys.readouterr()
    assert main(["search", "--info", "searchpath", "--config-dir", "conf"]) == 0
    assert str(Path("conf").resolve()) in capsys.readouterr().out


def test_hydra_leaves_nothing_behind(work: Work) -> None:
    """Neither a job nor a sweep writes into the working directory; a sweep's record is in the cache."""
    assert main([*SEARCH]) == 0
    assert main([*SEARCH, "-m", "seed=1,2"]) == 0
    assert list(Path.cwd().iterdir()) == []
    assert [path.name for path in Path.cwd().parent.joinpath("home").rglob("*") if path.is_file()] == ["multirun.yaml"]


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("autotune ", "probe estimate search run"),
        ("autotune se", "search"),
        ("autotune search sam", "sampler. sampler="),
        ("autotune search sampler=", "sampler=gp sampler=grid sampler=random sampler=roofline sampler=tpe"),
        ("autotune search model=tiny recipe.meth", "recipe.method="),
        ("autotune run ", ""),
        ("autotune run runs/x/run.yaml candidate.max", "candidate.max_length="),
        ("autotune serach ", ""),
    ],
)
def test_completion(
    work: Work, line: str, answer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tab completes commands, groups, options and keys; at FILE it leaves the word to the shell."""
    monkeypatch.setenv("COMP_LINE", line)
    assert main(["-sc", "query=bash"]) == 0
    assert capsys.readouterr().out.strip() == answer


def test_completion_installs(capsys: pytest.CaptureFixture[str]) -> None:
    """The script for the shell completes the word `autotune`."""
    assert main(["-sc", "install=bash"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("-F hydra_bash_completion autotune")


def test_as_a_module() -> None:
    """`python -m autotune` is the same program, and its exit code is the shell's."""
    done = subprocess.run([sys.executable, "-m", "autotune", "search", "epochs=3"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "epochs=3: no such key; the nearest is recipe.epochs" in done.stderr
