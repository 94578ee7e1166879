"""One stream is sent, whole and once, whatever the student does inside its window."""

from __future__ import annotations

import asyncio

import pytest

from stillhouse.serve.stream_buffer import choose_stream


class Student:
    def __init__(self, pieces, fails_at=None, hangs_at=None):
        self.pieces, self.fails_at, self.hangs_at, self.closed = pieces, fails_at, hangs_at, False

    async def stream(self):
        try:
            for k, piece in enumerate(self.pieces):
                if k == self.fails_at:
                    raise ConnectionError("reset")
                if k == self.hangs_at:
                    await asyncio.sleep(60)
                yield piece
        finally:
            self.closed = True


async def teacher():
    for piece in "TUV":
        yield piece


def chosen(student, accept, pieces=3, window_ms=200.0):
    async def ask():
        own, stream = await choose_stream(
            student.stream(), teacher, accept, pieces=pieces, window_ms=window_ms
        )
        return own, "".join([piece async for piece in stream])

    return asyncio.run(ask())


@pytest.mark.parametrize("size", [1, 3, 4, 9])
def test_accepted_student_is_sent_once(size):
    student, seen = Student("abcd"), []
    assert chosen(student, lambda w: seen.append(w) or True, size) == (True, "abcd")
    assert len(seen) == 1
    assert "".join(seen[0].pieces) == "abcd"[:size]
    assert seen[0].closed == ("ended" if size > 4 else "full")
    assert student.closed


def test_refused_student_is_closed_and_not_spliced():
    student = Student("abcd")
    assert chosen(student, lambda _: False) == (False, "TUV")
    assert student.closed


@pytest.mark.parametrize("at", [0, 2])
def test_failing_or_hanging_student_gives_way_in_the_window(at):
    for student in (Student("abcd", fails_at=at), Student("abcd", hangs_at=at)):
        assert chosen(student, lambda _: True, window_ms=30) == (False, "TUV")
        assert student.closed


def test_empty_student_gives_way():
    assert chosen(Student(""), lambda _: True) == (False, "TUV")


def test_student_that_fails_after_the_window_raises():
    with pytest.raises(ConnectionError):
        chosen(Student("abcd", fails_at=3), lambda _: True, pieces=2)


def test_window_without_room_is_refused():
    with pytest.raises(ValueError, match="window"):
        chosen(Student("a"), lambda _: True, pieces=0)


def test_student_is_closed_where_the_decision_fails():
    student = Student("abcd")
    with pytest.raises(ZeroDivisionError):
        chosen(student, lambda _: 1 / 0)
    assert student.closed
