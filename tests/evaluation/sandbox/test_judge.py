"""No program passes tests that it does not solve, whatever it does to its own process."""

from __future__ import annotations

import time

import pytest

from lmsmith.core.errors import UserError
from lmsmith.evaluation.sandbox.programs import (
    Limits,
    Program,
    Verdict,
    check_system,
    run_program,
)

try:
    check_system()
except UserError as error:
    pytest.skip(f"no sandbox here: {error.problem}", allow_module_level=True)

QUICK = Limits(cpu_seconds=1, wall_seconds=20.0)
GIVEN = '''from typing import List

def twice(x: int) -> int:
    """ Twice the number. """
    return 2 * x

def total(xs: List[int]) -> int:
    """ Sum of the numbers, each twice. """
'''
TESTS = """
SECRET = "the expected value is 9917"

def check(candidate):
    from random import randint
    assert candidate([]) == 0
    assert candidate([1, 2]) == twice(1) + twice(2)
    for _ in range(5):
        xs = [randint(0, 10**9) for _ in range(3)]
        expected = 2 * sum(xs)
        assert candidate(xs) == expected
        assert str(candidate(xs)) == str(expected)
        assert abs(candidate(xs) - expected) < 1e-6

check(total)
"""
EQUAL = """
class Equal({base}):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    def __sub__(self, other): return 0
    def __abs__(self): return 0
    def __str__(self): return Anything("x")
    def __bool__(self): return True
    def __hash__(self): return 0
class Anything(str):
    def __eq__(self, other): return True
def total(xs): return Equal()
"""
FORGED = """
import os
def forge(descriptors, packed):
    for descriptor in descriptors:
        try: os.write(descriptor, len(packed).to_bytes(4, 'big') + packed)
        except OSError: pass
"""
PASSED = "b'd2:s7:outcomes6:passeds6:details0:'"
VALUE = "b'd1:s5:valuei3:0x0'"
FOOLING = {
    **{
        f"equals everything, of {base or 'no'} kind": EQUAL.format(base=base)
        for base in ("", "int", "float", "str", "list", "tuple", "dict", "set", "complex")
    },
    "class that is spoofed": "class E:\n    __class__ = property(lambda self: int)\n"
    "    def __eq__(self, o): return True\ndef total(xs): return E()",
    "lying metaclass": "class M(type):\n    def __eq__(s, o): return True\n    __hash__ = None\n"
    "class E(metaclass=M): pass\ndef total(xs): return E",
    "secret of frames": "import sys\ndef total(xs):\n    frame, found = sys._getframe(), []\n"
    "    while frame:\n        found += [*frame.f_locals.values(), *frame.f_globals.values()]\n"
    "        frame = frame.f_back\n    ends = [f for f in found if 'SECRET' in repr(f)[:99999]]\n"
    "    return found[0]['expected'] if ends else 1",
    "expected values of gc": "import gc\ndef total(xs):\n"
    "    return next(o['expected'] for o in gc.get_objects() if isinstance(o, dict) "
    "and 'expected' in o)",
    "tests of gc": "import gc, sys\nfound = [o for o in gc.get_objects() "
    "if isinstance(o, dict) and 'tests' in o]\ndef total(xs): return found[0]['tests']",
    "trace of the tests": "import sys, threading\ndef trace(frame, event, arg):\n"
    "    if 'expected' in frame.f_locals: frame.f_locals['expected'] = 0\n    return trace\n"
    "sys.settrace(trace); sys.setprofile(trace); threading.settrace(trace)\n"
    "def total(xs): return 0",
    "monitored by a hook": "import sys\nsys.addaudithook(lambda *a: None)\ndef total(xs): return 0",
    "another os.write": "import os\nos.write = lambda d, b: len(b)\ndef total(xs): return 0",
    "another os.write that says passed": "import os\nreal = os.write\n"
    f"os.write = lambda d, b: real(d, len({PASSED}).to_bytes(4, 'big') + {PASSED}) and len(b)\n"
    "def total(xs): return 0",
    "another os.read": "import os\nos.read = lambda d, n: b''\ndef total(xs): return 0",
    "another os._exit": "import os\nos._exit = lambda code: None\ndef total(xs): return 0",
    "another AssertionError": "import builtins\nbuiltins.AssertionError = type('E', (), {})\n"
    "def total(xs): return 0",
    "other builtins": "import builtins\nbuiltins.abs = builtins.sum = lambda *a: 0\n"
    "builtins.str = builtins.repr = lambda *a: ''\ndef total(xs): return 0",
    "another random": "import random\nrandom.randint = lambda *a: 0\ndef total(xs): return 0",
    "random numbers guessed": "import random\ndef total(xs):\n"
    "    return 2 * sum(random.randint(0, 10**9) for _ in range(3))",
    "another helper": "def twice(x): return 0\ndef total(xs): return 0",
    "another check": "def check(candidate): pass\ndef total(xs): return 0",
    "another check, with a secret": "SECRET = check = lambda c: None\ndef total(xs): return 0",
    "another module named main": "import sys\nsys.modules['__main__'].check = lambda c: None\n"
    "sys.modules['builtins'].check = lambda c: None\ndef total(xs): return 0",
    "exit at once": "import os\nos._exit(0)",
    "exit in a call": "import os\ndef total(xs): os._exit(0)",
    "exit by name": "import sys\ndef total(xs): sys.exit(0)",
    "exit at the end": "import atexit, os\natexit.register(os._exit, 0)\ndef total(xs): return 0",
    "exit in a thread": "import os, threading\nthreading.Timer(0.01, os._exit, [0]).start()\n"
    "def total(xs):\n    while True: pass",
    "StopIteration": "def total(xs): raise StopIteration",
    "GeneratorExit": "def total(xs): raise GeneratorExit",
    "AssertionError": "def total(xs): raise AssertionError",
    "KeyboardInterrupt": "def total(xs): raise KeyboardInterrupt",
    "an error that cannot be told": "class E(Exception):\n    def __str__(self): 1 / 0\n"
    "def total(xs): raise E",
    "an error with a lying class": "class M(type):\n    __mro__ = ()\n    __name__ = 5\n"
    "class E(Exception, metaclass=M): pass\ndef total(xs): raise E",
    "verdict forged at once": f"{FORGED}forge(range(64), {PASSED})\ndef total(xs): return 0",
    "verdict forged in a call": f"{FORGED}def total(xs): forge(range(64), {PASSED})",
    "answers in advance": f"{FORGED}forge(range(64), {VALUE})\n" * 20 + "def total(xs): return 0",
    "answer too long": "import os\ndef total(xs):\n    for d in range(9):\n"
    "        try: os.write(d, b'\\xff' * 4)\n        except OSError: pass",
    "answer with an end that never comes": "import os, time\ndef total(xs):\n"
    "    for d in range(9):\n        try: os.write(d, b'\\0\\0\\0\\x09ab')\n"
    "        except OSError: pass\n    os._exit(0)",
    "answer of noise": "import os\ndef total(xs):\n    for d in range(9):\n"
    "        try: os.write(d, b'\\0\\0\\0\\x20' + os.urandom(32))\n        except OSError: pass",
    "answer nested without end": "def total(xs):\n    xs = []\n"
    "    for _ in range(10**5): xs = [xs]\n    return xs",
    "answer in a circle": "def total(xs):\n    xs.append(xs)\n    return xs",
    "answer without end": "import itertools\ndef total(xs): return itertools.count()",
    "answer of many bytes": "def total(xs): return 'x' * (100 << 20)",
    "NaN": "def total(xs): return float('nan')",
    "None": "def total(xs): return None",
    "function": "def total(xs): return lambda: 0",
    "stand-in": "def total(xs): return total",
    "argument changed": "def total(xs):\n    xs[:] = []\n    return 0",
    "ends closed": "import os\nos.closerange(0, 64)\ndef total(xs): return 0",
    "order read again": "import os\nfound = b''\nfor d in range(64):\n"
    "    try: os.lseek(d, 0, 0); found += os.read(d, 1 << 20)\n    except OSError: pass\n"
    "assert b'SECRET' in found\ndef total(xs): return 0",
    "order in memory": "import ctypes, gc\ndef total(xs):\n"
    "    assert any('expected = 2' in o for o in gc.get_objects() if isinstance(o, str))",
    "own memory": "def total(xs): return open('/proc/self/mem', 'rb').read()",
    "the judge's memory": "import os\n"
    "def total(xs): return open(f'/proc/{os.getppid()}/mem', 'rb').read()",
    "the judge's descriptors": "import os\n"
    "def total(xs): return open(f'/proc/{os.getppid()}/fd/0', 'rb').read()",
    "crash": "import ctypes\ndef total(xs): ctypes.string_at(0)",
    "crash at once": "import ctypes\nctypes.string_at(0)",
    "crash of the stack": "import sys\nsys.setrecursionlimit(10**9)\ndef total(xs):\n"
    "    f = lambda g: g(g)\n    return f(f)",
    "no function": "x = 1",
    "no program": "def total(xs: return",
    "text that is no program": "\x00\ud800",
    "brackets without end": "(" * 100_000,
    "minus signs without end": "-" * 100_000 + "1",
    "a power without end": "def total(xs): return 10**10**10",
    "wait for ever": "import time\ndef total(xs): time.sleep(999)",
    "solutions of packages": "import os, sys\nfound = []\n"
    "for folder in [p + end for p in sys.path for end in ('/site-packages', '/dist-packages')]:\n"
    "    for root, _, names in os.walk(folder):\n        for name in names:\n"
    "            try: found.append(open(root + '/' + name, 'rb').read())\n"
    "            except OSError: pass\n"
    "assert found\ndef total(xs): return 0",
}  # fmt: skip


def judge(source: str, limits: Limits = QUICK) -> str:
    return run_program(Program(GIVEN + "    pass\n" + source, TESTS, GIVEN), limits).outcome


@pytest.mark.parametrize("name", FOOLING)
def test_no_trick_passes(name: str) -> None:
    quick = Limits(cpu_seconds=1, wall_seconds=2.0) if "for ever" in name else QUICK
    assert judge(FOOLING[name], quick) in ("failed", "timed out")


@pytest.mark.parametrize(
    "source",
    [
        "def total(xs): return 2 * sum(xs)",
        "def total(xs): return sum(map(twice, xs))",
        "class Number(int): pass\ndef total(xs): return Number(2 * sum(xs))",
        "import threading\nthreading.Thread(target=lambda: None).start()\n"
        "def total(xs):\n    print('x' * 100000)\n    return 2 * sum(xs)",
        "if __name__ == '__main__':\n    def total(xs): return 2 * sum(xs)",
    ],
)
def test_a_solution_passes(source: str) -> None:
    assert judge(source) == "passed"


@pytest.mark.parametrize(
    ("source", "tests"),
    [
        ("def f(x): yield from x", "assert list(f([1, 2])) == [1, 2]"),
        ("def f(x): return {1: {2}}, (3,), b'4', 5j", "assert f(0) == ({1: {2}}, (3,), b'4', 5j)"),
        ("from collections import Counter\ndef f(x): return Counter(x)",
         "assert f('aab') == {'a': 2, 'b': 1}"),
        ("def f(*a, **k): return [a, k]", "assert f(1, (2,), z={3}) == [(1, (2,)), {'z': {3}}]"),
        ("def f(x): raise KeyError(x)",
         "try: f(1)\nexcept KeyError: pass\nelse: assert False"),
        ("class Mine(ValueError): pass\ndef f(x): raise Mine(x)",
         "try: f(1)\nexcept ValueError as e: assert str(e) == '1'\nelse: assert False"),
        ("def f(x): return x\ndef g(x): return f(x) + 1", "assert g(f(1)) == 2"),
        ("n = 0\ndef f():\n    global n\n    n += 1\n    return n", "assert [f(), f()] == [1, 2]"),
        ("from fractions import Fraction\ndef f(): return Fraction(1, 2)", "assert f() == 0.5"),
    ],
)  # fmt: skip
def test_what_tests_usually_do_can_be_judged(source: str, tests: str) -> None:
    assert run_program(Program(source, tests)).passed


KINDS = """
import array, collections, datetime, decimal, fractions
def f():
    return [
        collections.deque([1, 2], 3), {1: 2}.keys(), array.array("i", [1]),
        datetime.date(2020, 2, 29), datetime.timedelta(1), decimal.Decimal("1.10"),
        fractions.Fraction(1, 3), collections.OrderedDict(b=1, a=2), collections.Counter("aab"),
    ]
"""


@pytest.mark.parametrize(
    ("source", "tests"),
    [
        ("async def f(x): return x + 1", "import asyncio\nassert asyncio.run(f(1)) == 2"),
        ("import asyncio\nasync def g(x):\n    await asyncio.sleep(0.01)\n    return x\n"
         "async def f(x): return sum(await asyncio.gather(g(1), g(x)))",
         "import asyncio\nasync def main():\n"
         "    assert await asyncio.gather(f(1), g(2)) == [2, 2]\n"
         "asyncio.run(main())"),
        ("import asyncio\ndef f(x): return asyncio.run(asyncio.to_thread(abs, x))",
         "assert f(-2) == 2"),
        ("async def f(x): raise KeyError(x)",
         "import asyncio\ncoroutine = f(1)\ntry: asyncio.run(coroutine)\nexcept KeyError: pass\n"
         "else: assert False"),
        ("import itertools\ndef f(): return itertools.count()",
         "from itertools import islice\nassert list(islice(f(), 3)) == [0, 1, 2]"),
        ("def f():\n    n = 0\n    while True:\n        n = (yield n) or n + 1",
         "g = f()\nassert [next(g), next(g), g.send(7), next(g)] == [0, 1, 7, 8]"),
        ("def f():\n    yield 1\n    raise KeyError(2)",
         "g = f()\nassert next(g) == 1\ntry: next(g)\nexcept KeyError: pass\nelse: assert False"),
        ("def f(): return iter([1, 2])\ndef g(x): return next(x)",
         "x = f()\nassert g(x) == 1 and next(x) == 2 and list(x) == []"),
        ("def f(x):\n    for _ in range(600): x = [x]\n    return x",
         "x = 1\nfor _ in range(600): x = [x]\nassert f(1) == x"),
        (KINDS, KINDS.replace("def f", "def mine") + "assert f() == mine()\n"
         "assert [type(x) for x in f()] == [type(x) for x in mine()]"),
    ],
)  # fmt: skip
def test_iterators_coroutines_and_kinds_of_the_standard_library_are_judged(
    source: str, tests: str
) -> None:
    assert run_program(Program(source, tests)).passed


def test_what_cannot_be_judged_says_so() -> None:
    verdict = run_program(Program("def f(g): return g(1)", "assert f(lambda x: x) == 1"))
    assert verdict.detail == "NotPlain: a function is no plain data"
    verdict = run_program(Program("class A: pass", "assert A().x == 1"))
    assert verdict.detail == "NotPlain: a A is no plain data"


WANTED = """
import asyncio, datetime
from collections import Counter, OrderedDict, deque
from itertools import islice
assert queue() == deque([1, 2]) and queue() == deque([1, 2])
assert day() == datetime.date(2020, 2, 29) and day() - datetime.date(2020, 2, 28) == ONE_DAY
assert ordered() == OrderedDict(b=1, a=2)
assert list(islice(numbers(), 3)) == [0, 1, 2]
assert next(numbers()) == 0
assert asyncio.run(later(2)) == 4
"""
GIVEN_DAY = "import datetime\nONE_DAY = datetime.timedelta(1)\n"
RIGHT = """
import datetime, itertools
from collections import OrderedDict, deque
ONE_DAY = datetime.timedelta(1)
def queue(): return deque([1, 2])
def day(): return datetime.date(2020, 2, 29)
def ordered(): return OrderedDict(b=1, a=2)
def numbers(): return itertools.count()
async def later(x): return 2 * x
"""
LIES = """    def __eq__(s, o): return True
    def __sub__(s, o): return ONE_DAY
    __hash__ = None
"""
CHEATS = {
    "deque that lies": f"class E(deque):\n{LIES}def queue(): return E()",
    "deque of anything": f"class E:\n{LIES}def queue(): return deque([E(), E()])",
    "deque by its class": "class E:\n    __class__ = deque\n    maxlen = None\n"
    f"    def __iter__(s): return iter([])\n{LIES}def queue(): return E()",
    "another deque": f"import collections\nclass E(list):\n{LIES}collections.deque = E\n"
    "def queue(): return E()",
    "date that lies": f"class E(datetime.date):\n{LIES}def day(): return E(2000, 1, 1)",
    "date by its class": "class E:\n    __class__ = datetime.date\n    year = month = day = 1\n"
    f"{LIES}def day(): return E()",
    "another date": f"class E:\n    year = month = day = 1\n{LIES}datetime.date = E\n"
    "def day(): return E()",
    "date of lying numbers": f"class I(int):\n{LIES}class E:\n    year = month = day = I(1)\n{LIES}"
    "datetime.date = E\ndef day(): return E()",
    "zone that lies": "class Z(datetime.tzinfo):\n    def utcoffset(s, t): return ONE_DAY\n"
    "def day(): return datetime.datetime(2020, 2, 29, tzinfo=Z())",
    "other order": "def ordered(): return OrderedDict(a=2, b=1)",
    "iterator that lies": "class E:\n    def __iter__(s): return s\n    def __next__(s): return s\n"
    f"{LIES}def numbers(): return E()",
    "iterator that ends": "def numbers(): return iter([0])",
    "iterator that stops the tests": "class E:\n    def __iter__(s): return s\n"
    "    def __next__(s): raise GeneratorExit\ndef numbers(): return E()",
    "iterator that leaves": "import os\nclass E:\n    def __iter__(s): return s\n"
    "    def __next__(s): os._exit(0)\ndef numbers(): return E()",
    "ended in a call": "import os\n"
    "def queue():\n    b = b'd1:s5:endedN0:'\n    for d in range(64):\n"
    "        try: os.write(d, len(b).to_bytes(4, 'big') + b)\n        except OSError: pass",
    "numbers of no iterator": "import os\n"
    "def numbers():\n    b = b'd1:s5:valueY2:99'\n    for d in range(64):\n"
    "        try: os.write(d, len(b).to_bytes(4, 'big') + b)\n        except OSError: pass",
    "coroutine that lies": f"class E:\n    def __await__(s): yield s\n{LIES}"
    "def later(x): return E()",
    "coroutine of anything": f"class E:\n{LIES}async def later(x): return E()",
    "class named coroutine": f"class coroutine:\n{LIES}coroutine.__module__ = 'builtins'\n"
    "def later(x): return coroutine()",
    "another run": "import asyncio\nasyncio.run = lambda c: 4\nasync def later(x): return 0",
    "another socketpair": "import socket\nsocket.socketpair = lambda: None\n"
    "def later(x): return 4",
    "coroutine in a coroutine": "async def later(x):\n    async def more(): return 4\n"
    "    return more()",
    "coroutine that exits": "import os\nasync def later(x): os._exit(0)",
    "coroutine that waits for ever": "import asyncio\n"
    "async def later(x): await asyncio.Event().wait()",
}  # fmt: skip


def test_the_right_program_passes_what_the_cheats_do_not() -> None:
    assert run_program(Program(RIGHT, WANTED, GIVEN_DAY)) == Verdict("passed")


@pytest.mark.parametrize("name", CHEATS)
def test_no_cheat_passes_by_an_iterator_a_coroutine_or_a_kind(name: str) -> None:
    quick = Limits(cpu_seconds=1, wall_seconds=3.0) if "for ever" in name else QUICK
    verdict = run_program(Program(RIGHT + CHEATS[name], WANTED, GIVEN_DAY), quick)
    assert verdict.outcome in ("failed", "timed out")
    assert not verdict.detail.startswith(("NameError", "SyntaxError", "IndentationError"))


def test_the_programs_own_words_tell_why_it_failed() -> None:
    for source, detail in (
        ("1 / 0", "ZeroDivisionError: division by zero"),
        (
            "import json\njson.loads('x')",
            "JSONDecodeError: Expecting value: line 1 column 1 (char 0)",
        ),
        ("class Odd(Exception): pass\nraise Odd('x')", "Odd: x"),
        ("{}['x']", "KeyError: 'x'"),
    ):
        assert run_program(Program(source, "pass")).detail == detail


@pytest.mark.parametrize(
    "tests",
    [
        "import os\nos._exit(0)", "import sys\nsys.exit(0)", "while True: pass", "1 / 0", "def f(:",
        "import os\nos.write(3, b'x' * 100)", "import ctypes\nctypes.string_at(0)",
        "import time\ntime.sleep(99)", "open('/etc/passwd')", "x = 'a' * (1 << 31)",
    ],
)  # fmt: skip
def test_tests_that_do_harm_end_no_evaluation(tests: str) -> None:
    begun = time.monotonic()
    assert not run_program(Program("x = 1", tests), Limits(cpu_seconds=1, wall_seconds=3.0)).passed
    assert time.monotonic() - begun < 300


@pytest.mark.parametrize(("returned", "outcome"), [("a ** b", "passed"), ("0", "failed")])
def test_a_function_of_a_builtins_name_is_the_programs(returned: str, outcome: str) -> None:
    given = "def pow(a, b):\n"
    tests = "def check(candidate):\n    assert candidate(2, 3) == 8\ncheck(pow)\n"
    assert run_program(Program(f"{given}    return {returned}\n", tests, given)).outcome == outcome
