import numpy as np
import pytest

from hpt_mlflow.inspection.hash_search import HashTable

RNG = np.random.default_rng(0)
ALL = np.full(4, ~np.uint64(0))


def random_hashes(count):
    return RNG.integers(0, 2**63, (count, 4)).astype(np.uint64) * np.uint64(2) + np.uint64(1)


def flipped(value, bits):
    changed = value.copy()
    for bit in bits:
        changed[bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    return changed


def brute_force(hashes, value, certain, most):
    return any(sum(int(x).bit_count() for x in (row ^ value) & certain) <= most for row in hashes)


@pytest.mark.parametrize("uncertain", [0, 60, 120])
def test_it_finds_what_comparing_with_all_finds(uncertain):
    hashes = random_hashes(500)
    table, answers = HashTable(hashes), []
    for trial in range(120):
        certain = flipped(ALL, RNG.permutation(256)[:uncertain])
        wrong = RNG.permutation(256)[: trial % 8]
        value = flipped(hashes[trial] ^ (random_hashes(1)[0] & ~certain), wrong)
        most = int(0.02 * (256 - uncertain))
        answers.append(table.match(value, certain))
        assert answers[-1] == brute_force(hashes, value, certain, most)
    assert 20 < sum(answers) < 120


def test_a_picture_of_which_little_is_certain_matches_nothing():
    hashes = random_hashes(5)
    table = HashTable(hashes)
    assert table.match(hashes[2], ALL)
    assert not table.match(hashes[2], flipped(ALL, range(230)))
    assert not HashTable(hashes[:0]).match(hashes[2], ALL)
