"""The ways in for other languages: a program behind a pipe, a file of results, the command line. None can be broken."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import pytest

from refmeta.__main__ import main
from refmeta.conformance.cases import FOLDER, Case, load
from refmeta.conformance.check import select
from refmeta.conformance.doors import DoorError, answer_from_json, check_command, check_results

OWN = [sys.executable, "-W", "ignore", "-m", "refmeta.conformance.harness"]
VECTORS = select(["maml"], ["canary", "quadratic", "scalar"])
BAD = "maml-quadratic-k2-t2"  # the case at which a program misbehaves
RIGHT = {v.case.id: [leaf.tolist() for leaf in v.gradient] for v in VECTORS}

# A program in Python that knows the right answers; at one case it does something else, before it would answer.
PROGRAM = """
import json, os, subprocess, sys, time

answers = json.loads(sys.argv[1])
for line in sys.stdin:
    message = json.loads(line)
    if message["cmd"] == "stop":
        break
    reply = {"version": 1, "name": "a program"}
    if message["cmd"] == "run":
        reply = {"seq": message["seq"], "gradient": answers[message["case"]["id"]]}
        if message["case"]["id"] == sys.argv[2]:
            MISBEHAVE
    print(json.dumps(reply), flush=True)
"""


@pytest.fixture
def program(tmp_path):
    """The command of a program that does this at the case BAD."""

    def write(misbehave, answers=None):
        path = tmp_path / "program.py"
        path.write_text(PROGRAM.replace("MISBEHAVE", misbehave))
        return [sys.executable, str(path), json.dumps(answers or RIGHT), BAD]

    return write


@pytest.fixture
def script(tmp_path):
    """The command of a program with this text."""

    def write(text):
        path = tmp_path / "script.py"
        path.write_text(text)
        return [sys.executable, str(path)]

    return write


def only_row_that_failed(report):
    """The row of BAD; all the others must have passed."""
    assert {row.id: row.status for row in report.rows if row.id != BAD} == {i: "pass" for i in RIGHT if i != BAD}
    return next(row for row in report.rows if row.id == BAD)


def within(seconds, function, *arguments):
    """What the function returns, if it does so in time."""
    box = []
    thread = threading.Thread(target=lambda: box.append(function(*arguments)), daemon=True)
    thread.start()
    thread.join(seconds)
    assert box, f"still busy after {seconds} seconds"
    return box[0]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:  # it ended between the two
        return False


def dies(pid, seconds=5.0):
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


# --- A program that works ---


def test_refmetas_own_harness_passes_every_vector():
    report = check_command(OWN, select(None, None))
    assert report.passed, str(report)
    assert [v.kind for v in report.verdicts] == ["pass"] * 5


def test_a_program_with_the_right_answers_passes(program):
    report = check_command(program("pass"), VECTORS)
    assert report.passed, str(report)
    assert report.title.startswith(f"refmeta check -- {sys.executable}")


def test_gradients_may_be_flat_or_hex_floats(program):
    flat = {v.case.id: [[float(x).hex() for x in leaf.ravel()] for leaf in v.gradient] for v in VECTORS}
    assert check_command(program("pass", flat), VECTORS).passed


def test_a_first_order_program_is_named(script):
    text = """
import sys
from refmeta.conformance import harness
from refmeta import fomaml
harness.refmeta.maml = fomaml
harness.serve(sys.stdin, sys.stdout)
"""
    found = check_command(script(text), select(["maml"], ["canary", "quadratic"])).verdicts[0]
    assert found.kind == "bug" and found.explanations[0].suspects == ("first_order",)


def same(a, b):
    """Whether two trees of arrays, or None, are the same, kinds of numbers included."""
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a is b if a is None else (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def test_every_case_goes_through_json_without_loss():
    for case in (vector.case for vector in load()):
        back = Case.from_json(json.loads(json.dumps(case.to_json())), case.tier)
        assert same([back.theta, back.tasks], [case.theta, case.tasks])
        assert vars(back) | {"theta": 0, "tasks": 0, "flags": 0} == vars(case) | {"theta": 0, "tasks": 0, "flags": 0}


def test_a_case_shows_a_program_no_answers():
    shown = {"id", "algorithm", "model", "loss", "alpha", "head", "conventions", "theta", "tasks"}
    assert set(VECTORS[0].case.to_json()) == shown


# --- A program that fails at one case: one row, and the rest are answered ---


@pytest.mark.parametrize(
    "misbehave, status, message",
    [
        ("os._exit(3)", "error", "ended with exit code 3 before it answered"),
        ("os.kill(os.getpid(), 9)", "error", "ended with exit code -9 before it answered"),
        ("raise RuntimeError('out of luck')", "error", "(stderr: RuntimeError: out of luck)"),
        ("sys.exit(0)", "error", "ended with exit code 0 before it answered"),
        ("reply['seq'] += 1", "error", "answered out of turn: expected seq 3, got '4'"),
        ("del reply['seq']", "error", "answered out of turn: expected seq 3, got 'None'"),
        ("reply = [reply]", "error", "answered out of turn"),
        ("reply = None", "error", "answered out of turn"),
        ("print('Epoch 1 of 10', flush=True)", "error", "answered with a line that is no JSON: b'Epoch 1 of 10"),
        ("print(flush=True)", "error", "answered with a line that is no JSON"),
        ("sys.stdout.buffer.write(bytes(range(128, 256)) + b'\\n')", "error", "answered with a line that is no JSON"),
        ("print('[' * 200_000, flush=True)", "error", "answered with a line that is no JSON"),
        ('sys.stdout.write(\'{"seq": 3, "grad\'); sys.stdout.flush(); os._exit(0)', "error", "a line that is cut off"),
        ("sys.stdout.write('x' * (17 << 20))", "error", "is cut off, or is longer than 16 MiB"),
        ("reply = {'seq': reply['seq'], 'skipped': 'no quadratics'}", "skip", "no quadratics"),
        ("reply = {'seq': reply['seq'], 'errored': 'not today'}", "error", "says it failed: not today"),
        ("reply['gradient'][0][0] = float('nan')", "error", "has NaN or infinity"),
        ("reply['dtype'] = 'float16'", "error", "answered with dtype 'float16': expected float32 or float64"),
        ("reply['dtype'] = []", "error", "answered with dtype []: expected float32 or float64"),
        ("reply['gradients'] = reply.pop('gradient')", "error", "expected gradient, and any of"),
        ("del reply['gradient']", "error", "expected gradient, and any of"),
        ("reply['gradient'] = 7", "error", "something other than a list of arrays"),
        ("reply['gradient'] = None", "error", "something other than a list of arrays"),
        ("reply['gradient'] = [['one', 'two', 'three']]", "error", "something other than a list of arrays"),
        ("reply['gradient'] = [[[1, 2], [3]]]", "error", "something other than a list of arrays"),
        ("reply['gradient'] = [[10 ** 400]]", "error", "something other than a list of arrays"),
        ("reply['gradient'] = [['0.5'] * 3]", "error", "expected a hex float as '0x1.8p+0', got '0.5'"),
        ("reply['phi'] = 7", "error", "something other than a list of arrays"),
        ("reply['gradient'] = []", "fail", "0 arrays, expected"),
        ("reply['gradient'] = [[1, 2, 3, 4, 5]]", "fail", "expected"),
        pytest.param("reply['gradient'] = [{'values': [1]}]", "error", "something other than a list of arrays"),
    ],
)
def test_what_goes_wrong_at_one_case_costs_one_row(misbehave, status, message, program):
    row = only_row_that_failed(check_command(program(misbehave), VECTORS, 20))
    assert row.status == status and message in row.message, row


def test_an_answer_given_twice_costs_one_row(program):
    report = check_command(program("print(json.dumps(reply), flush=True)"), VECTORS)
    bad = [row for row in report.rows if row.status != "pass"]
    assert len(bad) == 1 and "answered out of turn: expected seq 4, got '3'" in bad[0].message


def test_a_hang_costs_one_row_and_no_more_than_its_time(program):
    start = time.monotonic()
    row = only_row_that_failed(check_command(program("time.sleep(60)"), VECTORS, 1.5))
    assert row.status == "error" and "gave no answer within 1.5 seconds" in row.message
    assert time.monotonic() - start < 20


def test_a_program_that_skips_is_not_wrong(program):
    report = check_command(program("reply = {'seq': reply['seq'], 'skipped': 'no quadratics'}"), VECTORS)
    assert report.passed and "1 skipped" in str(report)


def test_a_flood_of_lines_ends(script):
    text = "import sys\nprint('{\"version\": 1}')\nwhile True:\n    print('{\"seq\": 99}')\n"
    report = within(20, check_command, script(text), VECTORS[:2], 5)
    assert [row.status for row in report.rows] == ["error"] * 2


def test_of_a_flood_of_complaints_the_last_is_said_and_no_more_is_kept(script):
    text = """
import sys
print('{"version": 1}', flush=True)
for i in range(9999):
    sys.stderr.write(f"no {i}\\n" * 999)
"""
    report = within(60, check_command, script(text), VECTORS[:1], 50)
    assert report.rows[0].message == "ended with exit code 0 before it answered (stderr: no 9998)"


def test_of_a_complaint_without_an_end_the_last_2000_bytes_are_kept(script):
    text = """
import sys
print('{"version": 1}', flush=True)
sys.stderr.write("".join(f"{i:07d} " for i in range(10**5)))
"""
    report = within(30, check_command, script(text), VECTORS[:1], 20)
    kept = "".join(f"{i:07d} " for i in range(10**5 - 250, 10**5)).strip()
    assert report.rows[0].message == f"ended with exit code 0 before it answered (stderr: {kept[:160]})"


def test_a_program_that_reads_nothing_more_is_heard_to_its_end(script):
    """It closes its input: what is written to it then is lost, and its answers count."""
    text = """
import json, sys, time
print('{"version": 1}', flush=True)
sys.stdin.close()
for seq in range(4):
    time.sleep(0.1)
    print(json.dumps({"seq": seq, "skipped": "no"}), flush=True)
"""
    report = within(30, check_command, script(text), VECTORS[:4], 10)
    assert [row.message for row in report.rows] == ["no"] * 4


def test_a_program_that_answers_all_without_reading_does_not_block(script):
    """What is written to it fills the pipe, which it holds with a child that gets away."""
    text = """
import json, subprocess, sys, time
print('{"version": 1}', flush=True)
child = subprocess.Popen(["sleep", "60"], start_new_session=True)
print(child.pid, file=open(sys.argv[0] + ".pid", "a"))
for seq in range(4):
    time.sleep(0.2)
    print(json.dumps({"seq": seq, "skipped": "no"}), flush=True)
time.sleep(60)
"""
    command = script(text)
    try:
        report = within(30, check_command, command, select(["maml"], ["tanh"]), 2)
        assert [row.status for row in report.rows] == ["skip"] * 4
    finally:
        for pid in Path(command[1] + ".pid").read_text().split():
            os.kill(int(pid), 9)


def test_nothing_is_left_running_or_open_after_a_flood(script):
    before = threading.active_count(), len(os.listdir("/proc/self/fd"))
    text = "import sys\nwhile True:\n    print('{\"version\": 1}')\n"
    assert not check_command(script(text), VECTORS, 5).passed
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == before


def test_a_program_that_never_reads_does_not_block():
    command = ["sh", "-c", "echo '{\"version\": 1}'; exec sleep 60"]  # it greets in no time
    report = within(20, check_command, command, VECTORS[:2], 0.6)
    assert ["gave no answer within" in row.message for row in report.rows] == [True] * 2


def test_a_program_that_cannot_be_started_again_is_an_error_at_each_case(tmp_path, script):
    text = """
import os, sys
print('{"version": 1}', flush=True)
sys.stdin.readline()
os.remove(sys.argv[0])
"""
    report = check_command(script(text), VECTORS[:3])
    assert [row.status for row in report.rows] == ["error"] * 3
    assert "could not be started again" in report.rows[2].message


def test_a_program_that_ignores_stop_is_killed(script):
    text = PROGRAM.replace("break", "time.sleep(60)").replace("MISBEHAVE", "pass")
    start = time.monotonic()
    assert check_command([*script(text), json.dumps(RIGHT), BAD], VECTORS).passed
    assert time.monotonic() - start < 10


# --- Large answers: refused before they are decoded, for a value of two bytes takes two hundred ---

MIB = 2**20
HUGE = {
    "empty lists": b"[],",
    "lists of one": b"[1],",
    "numbers": b"1,",
    "hex floats": b'"0x1",',
    "objects": b"{},",
    "objects of one": b'{"":0},',
}


def filled(unit, size=16 * MIB, most=None):
    """A results file of so many bytes, its first answer a list of such values; of at most so many numbers and lists."""
    start, end = b'{"maml-canary": [', b"0]}"
    many = (size - len(start + end)) // len(unit)
    if most is not None:
        many = min(many, most // sum(map(unit.count, (b",", b"[", b"{"))) - 3)
    return (start + unit * many + end).ljust(size)


def peak(function, *arguments):
    """What it returns or how it refuses, and the bytes that Python held meanwhile."""
    tracemalloc.start()
    try:
        found = str(function(*arguments))
    except DoorError as error:
        found = str(error)
    finally:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return found, most


@pytest.mark.parametrize("unit", HUGE.values(), ids=HUGE)
def test_a_results_file_of_too_many_values_is_refused_in_64_mebibytes(unit, tmp_path):
    (tmp_path / "results.json").write_bytes(filled(unit))
    said, most = peak(check_results, str(tmp_path / "results.json"), VECTORS)
    assert said.endswith("results.json: is not JSON: expected at most 131072 commas and brackets") and most < 64 * MIB


@pytest.mark.parametrize(
    "content, said",
    [
        (filled(b"[],", most=2**17), "65534 arrays, expected"),
        (filled(b'{"":0},', most=2**17), "something other than a list of arrays"),
        (
            '{"maml-canary": "' + "\U0001f600" * 1000 + "x" * (15 * MIB) + '"}',
            "expected a list of arrays, got str",
        ),  # four bytes a letter
    ],
    ids=["arrays", "objects", "text"],
)
def test_a_results_file_of_16_mebibytes_is_judged_in_256(content, said, tmp_path):
    (tmp_path / "results.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    found, most = peak(check_results, str(tmp_path / "results.json"), VECTORS[:1])
    assert said in " ".join(found.split()) and most < 256 * MIB


def test_answers_of_16_mebibytes_cost_a_row_each_and_all_together_256(script):
    """A program sends as much as a line may hold, then as many values as it may have, to each question."""
    text = """
import json, sys
print('{"version": 1}', flush=True)
sys.stdin.readline()
for line in sys.stdin:
    seq = json.loads(line).get("seq", 0)
    start = '{"seq": %d, "gradient": [' % seq
    sys.stdout.write(start + "[]," * (5592000 if seq % 2 else 4000) + "[]]}\\n")
    sys.stdout.flush()
"""
    found, most = peak(check_command, script(text), VECTORS)
    assert 'answered with a line that is no JSON: b\'{"seq": 1, "gradient"' in found
    assert (
        "expected at most 8192 commas and brackets" in found and "4001 arrays, expected" in found and most < 256 * MIB
    )


def test_all_answers_with_all_that_is_inside_them_are_not_too_many():
    """A quarter of what is allowed in one and a third in all, written as wide as the protocol has it."""

    def arrays(value):
        if isinstance(value, list):
            return [arrays(each) for each in value]
        return {"shape": list(value.shape), "data": [float(x).hex() for x in value.ravel()]}

    inside = ("gradient", "phi", "inner_gradient", "adjoint")
    answers = {
        v.case.id: {"gradient": arrays(v.gradient)}
        | {key: [arrays(task[key]) for task in v.per_task] for key in inside[1:] if key in v.per_task[0]}
        for v in load()
    }
    counts = [sum(map(json.dumps(answer).count, ",[{")) for answer in answers.values()]
    assert max(counts) < 2**13 / 4 and sum(counts) < 2**17 / 3


# --- A program that cannot be greeted ---


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "ended with exit code 0 before it answered"),
        ("import sys\nsys.exit(5)", "ended with exit code 5 before it answered"),
        ("import time\ntime.sleep(60)", "gave no answer within 0.5 seconds"),
        ("import this", "answered with a line that is no JSON: b'The Zen of Python"),
        ("print('{\"version\": 2}')", 'expected {"version": 1, …} to "start"'),
        ("print('{}')", 'expected {"version": 1, …} to "start"'),
        ("print('[1]')", 'expected {"version": 1, …} to "start"'),
        ("print('{\"version\"', end='')", "a line that is cut off"),
        ("raise ImportError('no torch here')", "(stderr: ImportError: no torch here)"),
        (r"import sys; sys.exit('\x1b[2J\x9b31m no\u202e')", r"(stderr: \x1b[2J\x9b31m no\u202e)"),
        (r"""print('{"version": "\x1b[2J"}')""", r"""is no JSON: b'{"version": "\x1b[2J"}"""),
        (r"""print('{"version": "\\u001b[2J\\u202e"}')""", r"""answered "{'version': '\\x1b[2J\\u202e'}"; expected"""),
    ],
)
def test_a_program_that_does_not_answer_start_is_refused(text, message, script):
    with pytest.raises(DoorError) as caught:
        check_command(script(text), VECTORS, 0.5 if "sleep" in text else 20)
    assert message in str(caught.value)


@pytest.mark.parametrize("command", [["/nowhere/to/be/found"], ["."], [""]])
def test_a_command_that_cannot_be_started_is_refused(command):
    with pytest.raises(DoorError, match="cannot be started"):
        check_command(command, VECTORS)


# --- Nothing is left behind ---

CHILD = """child = subprocess.Popen(['sleep', '60'])
            open({path!r}, 'w').write(str(child.pid))
            {then}"""


@pytest.mark.parametrize("then", ["time.sleep(60)", "os._exit(1)", "pass"])
def test_what_the_program_started_is_killed_with_it(then, program, tmp_path):
    path = tmp_path / "pid"
    check_command(program(CHILD.format(path=str(path), then=then)), VECTORS, 1)
    assert dies(int(path.read_text()))


def test_a_child_that_got_away_does_not_block_the_check(program, tmp_path):
    path = tmp_path / "pid"
    misbehave = CHILD.format(path=str(path), then="time.sleep(60)").replace("'60']", "'60'], start_new_session=True")
    try:
        only_row_that_failed(within(4, check_command, program(misbehave), VECTORS, 0.5))
    finally:
        os.kill(int(path.read_text()), 9)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_and_a_terminal_that_closes_end_the_program_too(number, program, tmp_path):
    """The shell and the system may both send SIGHUP: a second must not interrupt what the first began."""
    path = tmp_path / "pid"
    misbehave = f"open({str(path)!r}, 'w').write(str(os.getpid()) + '.'); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-m", "refmeta", "check", "--", *program(misbehave)]) as check:
        while not path.exists() or not path.read_text().endswith("."):
            time.sleep(0.02)
        while check.poll() is None:
            check.send_signal(number)
            time.sleep(0.01)  # or it does nothing but answer them
        assert check.wait(20) in (128 + number, -number)  # one that comes as it exits ends it by itself
    assert dies(int(path.read_text()[:-1]))


def test_under_nohup_a_terminal_that_closes_ends_nothing(program, tmp_path):
    path, go = tmp_path / "pid", tmp_path / "go"
    path.write_text("")
    misbehave = f"""open({str(path)!r}, 'w').write('here')
            while not os.path.exists({str(go)!r}):
                time.sleep(0.02)"""
    options = ["--algorithm", "maml", "--tier", "canary", "--tier", "quadratic", "--tier", "scalar"]
    ignoring = (
        "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execvp(sys.argv[1], sys.argv[1:])"
    )
    command = [
        sys.executable,
        "-c",
        ignoring,
        sys.executable,
        "-m",
        "refmeta",
        "check",
        *options,
        "--",
        *program(misbehave),
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as check:
        while path.read_text() != "here":
            time.sleep(0.02)
        check.send_signal(signal.SIGHUP)
        go.touch()
        assert check.wait(20) == 0


def test_the_program_itself_is_gone_after_a_check(program, tmp_path):
    path = tmp_path / "pid"
    check_command(program(f"open({str(path)!r}, 'w').write(str(os.getpid()))"), VECTORS)
    assert dies(int(path.read_text()))


# --- A file of results ---


@pytest.fixture
def results(tmp_path):
    """The path of a file with this content."""

    def write(content):
        path = tmp_path / "results.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


def test_right_results_pass(results):
    report = check_results(results(RIGHT), VECTORS)
    assert report.passed and [row.status for row in report.rows] == ["pass"] * len(VECTORS)


def test_results_of_every_vector_pass(results):
    vectors = select(None, None)
    report = check_results(results({v.case.id: [leaf.tolist() for leaf in v.gradient] for v in vectors}), vectors)
    assert report.passed, str(report)


def test_results_may_say_that_they_are_float32(results):
    vectors = select(["maml"], ["tanh"])
    rough = {v.case.id: [(leaf * (1 + 1e-7)).tolist() for leaf in v.gradient] for v in vectors}
    single = {name: {"gradient": gradient, "dtype": "float32"} for name, gradient in rough.items()}
    assert check_results(results(single), vectors).passed
    assert check_results(results(rough), vectors).verdicts[0].kind == "precision"


def test_a_vector_without_a_result_is_skipped(results):
    report = check_results(results({i: g for i, g in RIGHT.items() if i != BAD}), VECTORS)
    assert report.passed and only_row_that_failed(report)[3:] == ("skip", 0, "no answer in the file")


def test_no_results_at_all_do_not_pass(results):
    assert not check_results(results({}), VECTORS).passed


def test_a_wrong_result_fails_in_its_row(results):
    report = check_results(results({**RIGHT, BAD: [[2.0, 3.0, 5.0]]}), VECTORS)
    assert not report.passed and only_row_that_failed(report).status in ("fail", "error")


@pytest.mark.parametrize("value", [None, 7, "seven", {}, {"gradient": None}, [None], [[None]], [["x"]]])
def test_a_result_that_is_no_gradient_is_an_error_in_its_row(value, results):
    assert only_row_that_failed(check_results(results({**RIGHT, BAD: value}), VECTORS)).status == "error"


@pytest.mark.parametrize(
    "content, message",
    [
        ({**RIGHT, "maml-nonsense": [[1]]}, "there is no vector 'maml-nonsense'"),
        ("{", "is not JSON"),
        ("", "is not JSON"),
        ("[" * 200_000, "is not JSON"),
        ([RIGHT], "expected an object of id: gradient, got list"),
        ("7", "expected an object of id: gradient, got int"),
    ],
)
def test_files_that_are_no_results_are_refused(content, message, results):
    with pytest.raises(DoorError) as caught:
        check_results(results(content), VECTORS)
    assert message in str(caught.value) and "results.json" in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "results.json").write_bytes(b"\xff\x00\xfe{")
    with pytest.raises(DoorError, match="is not JSON"):
        check_results(str(tmp_path / "results.json"), VECTORS)


def test_a_results_file_without_an_end_is_refused(capsys):
    assert code("check", "--results", "/dev/zero") == 2
    assert "/dev/zero: is not JSON: more than 16777216 bytes" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_a_results_file_that_cannot_be_read_is_refused(name, tmp_path):
    with pytest.raises(DoorError, match="cannot be read"):
        check_results(str(tmp_path / name), VECTORS)


def test_an_answer_with_unknown_keys_is_an_error():
    assert "expected gradient" in answer_from_json(VECTORS[0], {"gradient": RIGHT["maml-canary"], "loss": 3}).problem


# --- The command line ---

FUNCTION = "refmeta.conformance.harness:meta_gradient"


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """A folder from which the command line imports."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def code(*arguments):
    """The exit code, argparse's too."""
    try:
        return main(list(arguments))
    except SystemExit as exit:
        return exit.code


@pytest.mark.filterwarnings("ignore:Output seems independent of input")
def test_a_right_function_ends_with_0(modules, capsys):
    assert code("check", FUNCTION) == 0
    assert f"refmeta check {FUNCTION}: passed" in capsys.readouterr().out


def test_a_wrong_function_in_the_callers_folder_ends_with_1_and_its_name(modules, capsys):
    (modules / "my_wrong_maml.py").write_text(
        "import refmeta\n\ndef g(case):\n    return refmeta.fomaml(case.loss_fn, case.theta, case.tasks, case.alpha)\n"
    )
    assert code("check", "my_wrong_maml:g", "--algorithm", "maml", "--tier", "canary", "--tier", "quadratic") == 1
    printed = capsys.readouterr().out
    assert "FAILED" in printed and "first-order: the second-order term is missing" in printed


def test_a_function_that_raises_ends_with_1(modules, capsys):
    (modules / "my_raising_maml.py").write_text("def g(case):\n    raise OSError('no disk')\n")
    assert code("check", "my_raising_maml:g", "--algorithm", "joint", "--tier", "canary") == 1
    assert "raised OSError: no disk" in capsys.readouterr().out


def test_a_function_that_hangs_ends_with_1(modules, capsys):
    (modules / "my_slow_maml.py").write_text("import time\n\ndef g(case):\n    time.sleep(30)\n")
    assert code("check", "my_slow_maml:g", "--algorithm", "joint", "--tier", "canary", "--timeout", "0.2") == 1
    assert "gave no answer within 0.2 seconds" in capsys.readouterr().out


def test_the_report_of_a_function_is_json_with_json(modules, capsys):
    assert code("check", FUNCTION, "--tier", "canary", "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["passed"] is True and {row["tier"] for row in content["rows"]} == {"canary"}


def test_a_function_is_asked_in_float32_if_wanted(modules, capsys):
    options = ["--tier", "tanh", "--algorithm", "maml"]
    assert code("check", FUNCTION, "--dtype", "float32", "--json", *options) == 0
    assert max(row["digits"] for row in json.loads(capsys.readouterr().out)["rows"]) < 10


def test_a_command_after_two_dashes_is_checked(capsys, program):
    options = [w for t in ("canary", "quadratic", "scalar") for w in ("--tier", t)]
    assert code("check", "--algorithm", "maml", *options, "--", *program("pass")) == 0
    assert "passed" in capsys.readouterr().out


def test_a_command_that_fails_ends_with_1(capsys, program):
    options = [w for t in ("canary", "quadratic", "scalar") for w in ("--tier", t)]
    assert code("check", "--algorithm", "maml", *options, "--json", "--", *program("os._exit(3)")) == 1
    assert json.loads(capsys.readouterr().out)["passed"] is False


def test_a_gradient_in_json_may_be_an_object_by_name(results):
    v = next(v for v in load() if v.case.id == "maml-softmax-k2-t3")
    named = {name: leaf.ravel().tolist() for name, leaf in zip(v.case.names, v.gradient, strict=True)}
    assert check_results(results({v.case.id: named}), [v]).passed
    (row,) = check_results(results({v.case.id: named | {"W1": "one"}}), [v]).rows
    assert row.status == "error" and "something other than a list of arrays" in row.message


def test_a_file_of_results_is_checked(capsys, results):
    assert code("check", "--results", results(RIGHT), "--algorithm", "maml") == 0
    assert "skipped" in capsys.readouterr().out


def test_a_file_of_all_results_may_be_checked_in_part(capsys, results):
    everything = {v.case.id: [leaf.tolist() for leaf in v.gradient] for v in select(None, None)}
    assert code("check", "--results", results(everything), "--algorithm", "maml") == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "expected one of MODULE:FUNCTION"),
        (["--"], "expected one of MODULE:FUNCTION"),
        ([FUNCTION, "--results", "r.json"], "expected one of MODULE:FUNCTION"),
        ([FUNCTION, "--", "true"], "expected one of MODULE:FUNCTION"),
        (["no_such_module_anywhere:f"], "expected MODULE:FUNCTION that can be imported"),
        (["refmeta:no_such_function"], "expected MODULE:FUNCTION that can be imported"),
        (["refmeta"], "expected MODULE:FUNCTION that can be imported"),
        ([":f"], "expected MODULE:FUNCTION that can be imported"),
        (["refmeta.conformance:Case"], "expected a function of a case, got type"),
        (["refmeta:__version__"], "expected a function of a case, got str"),
        ([".relative:f"], "refmeta check:"),
        ([FUNCTION, "--timeout", "0"], "expected a number of seconds above 0"),
        ([FUNCTION, "--timeout", "-1"], "expected a number of seconds above 0"),
        ([FUNCTION, "--timeout", "nan"], "expected a number of seconds above 0"),
        ([FUNCTION, "--timeout", "soon"], "invalid float value: 'soon'"),
        ([FUNCTION, "--tier", "elu"], "tier 'elu': expected one of canary"),
        ([FUNCTION, "--algorithm", "mamml"], "algorithm 'mamml': expected one of maml"),
        ([FUNCTION, "--dtype", "float16"], "dtype: expected float32 or float64, got 'float16'"),
        (["--results", "no-such-file.json"], "no-such-file.json: cannot be read"),
        (["--", "/nowhere/to/be/found"], "cannot be started"),
        (["--timeout", "20", "--", sys.executable, "-c", ""], "ended with exit code 0 before it answered"),
        pytest.param([FUNCTION, "--timeout", "inf"], "--timeout"),
    ],
)
def test_what_cannot_be_checked_ends_with_2_and_says_what_was_expected(arguments, message, modules, capsys):
    assert code("check", *arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.out == ""


# Python as Windows has it, as far as refmeta could notice: without these modules and names.
WINDOWS = """
import os, signal, sys
import autograd, numpy

sys.modules |= dict.fromkeys(["fcntl", "grp", "pwd", "resource", "termios"])
for module, names in ((os, "fork killpg mkfifo set_blocking"), (signal, "SIGHUP SIGKILL SIGQUIT pthread_sigmask")):
    for name in names.split():
        delattr(module, name)
del os.confstr_names  # there is no glibc either
from refmeta.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "arguments, expected, said",
    [
        (["vectors", "list"], 0, "maml-canary"),
        (["check", FUNCTION, "--tier", "canary"], 0, "passed"),
        (["check", "--results", "results.json"], 0, "passed"),
        (
            ["check", "--", "a", "program"],
            2,
            "expected Linux or macOS; elsewhere give MODULE:FUNCTION or --results FILE",
        ),
    ],
    ids=["vectors", "function", "results", "program"],
)
def test_without_what_windows_lacks_all_works_but_a_program_behind_pipes(arguments, expected, said, results, tmp_path):
    results(RIGHT)
    done = subprocess.run(
        [sys.executable, "-c", WINDOWS, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == expected and said in (done.stderr if expected else done.stdout), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ["def g(case:\n", "raise RuntimeError('no GPU')\n", "import sys\nsys.exit(0)\n"])
def test_a_module_that_breaks_while_it_is_imported_ends_with_2(text, modules, capsys):
    (modules / "my_broken_module.py").write_text(text)
    assert code("check", "my_broken_module:g") == 2


def test_vectors_are_listed_one_a_line(capsys):
    assert code("vectors", "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [v.case.id for v in select(None, None)]


def test_a_vector_is_shown_as_the_json_that_goes_through_the_door(capsys):
    assert code("vectors", "show", BAD) == 0
    vector = next(v for v in VECTORS if v.case.id == BAD)
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(vector.case.to_json()))


def test_every_vector_can_be_shown(capsys):
    for vector in select(None, ["edge", "canary", "softmax"]):
        assert code("vectors", "show", vector.case.id) == 0
        assert json.loads(capsys.readouterr().out)["id"] == vector.case.id


def test_a_vector_that_does_not_exist_ends_with_2(capsys):
    assert code("vectors", "show", "maml-nonsense") == 2
    assert "there is no vector 'maml-nonsense'" in capsys.readouterr().err


def test_vectors_are_exported_byte_for_byte(tmp_path, capsys):
    assert code("vectors", "export", str(tmp_path / "new/folder")) == 0
    copies = {p.name: p.read_bytes() for p in (tmp_path / "new/folder").iterdir()}
    assert copies == {p.name: p.read_bytes() for p in FOLDER.glob("*.json")}


def test_vectors_are_never_exported_over_anything(tmp_path, capsys):
    (tmp_path / "manifest.json").write_text("precious")
    assert code("vectors", "export", str(tmp_path)) == 2
    assert "exists already" in capsys.readouterr().err
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"manifest.json": "precious"}


def test_a_folder_that_cannot_be_made_ends_with_2(tmp_path, capsys):
    (tmp_path / "file").write_text("precious")
    assert code("vectors", "export", str(tmp_path / "file/below")) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("what", [["list"], ["show", "maml-quadratic-k3-t3"]])
def test_output_that_nobody_reads_to_its_end_is_no_success(what):
    process = subprocess.Popen(
        [sys.executable, "-m", "refmeta", "vectors", *what], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert (process.communicate()[1], process.returncode) == (b"", 141)


def test_vectors_without_an_action_end_with_2(capsys):
    assert code("vectors") == 2


def test_the_command_runs_as_a_module(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "refmeta", "check", FUNCTION, "--tier", "canary"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
    )
    assert done.returncode == 0 and "passed" in done.stdout and done.stderr == ""
