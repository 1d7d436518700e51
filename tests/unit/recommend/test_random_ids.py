"""Random ids: each once, in every process."""

import os

import pytest

from service.recommend.random_ids import random_id


@pytest.mark.parametrize("num_bytes", [1, 12, 16, 4_096])
def test_an_id_has_the_bytes_that_were_asked_for(num_bytes):
    assert len(bytes.fromhex(random_id(num_bytes))) == num_bytes


def test_no_id_comes_twice_however_often_bytes_are_fetched():
    assert len({random_id(16) for _ in range(10_000)}) == 10_000


def test_a_forked_worker_gives_out_ids_of_its_own():
    random_id(16)  # the parent has bytes left
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, random_id(16).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 100).decode() != random_id(16)
