"""TrajectoryCache on disk: made when due, drawn from, made again when lost."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from teefusion_core.errors import InvalidConfig
from teefusion_core.training.processes import Processes
from teefusion_core.training.targets import Trajectory
from teefusion_core.training.trajectory_cache import TrajectoryCache

STEPS, ROWS = 3, 4


class Maker:
    """Makes trajectories whose every number says which trajectory, step and row it is of."""

    def __init__(self):
        self.asked = []

    def __call__(self, number):
        self.asked.append(number)
        step, row = torch.arange(STEPS)[:, None], torch.arange(ROWS)
        place = (100 * number + 10 * step + row).float()[..., None, None, None].expand(-1, -1, 2, 3, 3)
        return Trajectory(
            x_SBCHW=place, sigma_S=1 - torch.arange(STEPS) / STEPS, target_SBCHW=place + 1000,
            guidance_SBCHW=torch.ones(1, ROWS, 2, 3, 3) * (1 + step + number)[..., None, None, None],
            w=torch.tensor(1.0 + number), prompt_SB=100 * number + 10 * step + row, null_SB=(step + row) % 2,
        )  # fmt: skip


@pytest.fixture
def make():
    return Maker()


def trajectories(make, folder, cache_size=2, reuse=1.0, **options):
    return TrajectoryCache(
        make, folder / "trajectories", examples=STEPS * ROWS, cache_size=cache_size, reuse=reuse, **options
    )


def files(folder):
    return sorted(int(path.stem.split("-")[1]) for path in (folder / "trajectories").glob("*.safetensors"))


def numbers(example):
    """Which trajectory, step, row every row is of."""
    return [(p // 100, p // 10 % 10, p % 10) for p in example.prompt_B.tolist()]


def drawn(data, times, rows=6):
    return [data.next(rows) for _ in range(times)]


def same(examples, others):
    return all(
        torch.equal(vars(a)[name], vars(b)[name]) for a, b in zip(examples, others, strict=True) for name in vars(a)
    )


def test_rows_stay_together(make, tmp_path):
    example = trajectories(make, tmp_path).next(200)
    for row, (trajectory, step, place) in enumerate(numbers(example)):
        value = 100 * trajectory + 10 * step + place
        assert bool((example.x_BCHW[row] == value).all()) and bool((example.target_BCHW[row] == value + 1000).all())
        assert float(example.sigma_B[row]) == pytest.approx(1 - step / STEPS)
        assert (float(example.w_B[row]), int(example.null_B[row])) == (1 + trajectory, (step + place) % 2)
        assert float(example.weight_B[row]) == pytest.approx(1 / (1 + step + trajectory) ** 2)
    assert example.x_BCHW.shape == (200, 2, 3, 3) and example.x_BCHW.dtype == torch.float32


def test_every_place_is_drawn(make, tmp_path):
    assert len(set(numbers(trajectories(make, tmp_path, reuse=0).next(600)))) == 2 * STEPS * ROWS


def test_training_begins_after_one_trajectory(make, tmp_path):
    trajectories(make, tmp_path, cache_size=3).next(1)
    assert make.asked == [0] == files(tmp_path)


def test_all_trajectories_come_first_where_each_is_made_once(make, tmp_path):
    trajectories(make, tmp_path, cache_size=3, reuse=0).next(1)
    assert make.asked == [0, 1, 2] == files(tmp_path)


def test_what_it_takes_on_disk_is_known_before(make, tmp_path):
    of_one = 3 * STEPS * ROWS * make(0).x_SBCHW[0, 0].numel() * 2
    for draws, stored in ((1, 1), (7, 2), (60, 4)):  # of 3 that are kept, while the next one is written
        data = trajectories(make, tmp_path / str(draws), cache_size=3)
        made = data.made((draws - 1) * 2)
        drawn(data, draws, rows=2)
        assert files(tmp_path / str(draws))[-1] == made - 1
        assert data.disk_bytes(made, of_one // (3 * STEPS * ROWS * 2)) == stored * of_one


@pytest.mark.parametrize(("uses", "made"), [(1.0, 1 + 5), (2.0, 1 + 2), (0.5, 1 + 10), (0, 2)])
def test_a_trajectory_is_made_when_the_examples_are_used_up(make, tmp_path, uses, made):
    data = trajectories(make, tmp_path, reuse=uses)
    drawn(data, 5 * STEPS * ROWS // 6)
    example = data.next(60)
    assert sorted(make.asked) == list(range(made))
    assert {trajectory for trajectory, _, _ in numbers(example)} == {made - 2, made - 1}
    assert files(tmp_path) == [made - 2, made - 1]


def test_trajectories_on_disk_are_not_made_again(make, tmp_path):
    first = drawn(trajectories(make, tmp_path), 3)
    asked = list(make.asked)
    assert same(drawn(trajectories(make, tmp_path), 3), first)
    # those that were dropped for being used up are the only ones that come anew
    assert set(make.asked[len(asked) :]) <= {1}


def test_it_resumes_from_its_state(make, tmp_path):
    data = trajectories(make, tmp_path)
    drawn(data, 7)
    state = data.state()
    rest = drawn(data, 9)
    again = trajectories(make, tmp_path)
    again.load_state(state)
    assert same(drawn(again, 9), rest)
    elsewhere = trajectories(Maker(), tmp_path / "empty")
    elsewhere.load_state(state)
    assert same(drawn(elsewhere, 9), rest), "the files are only a memory"


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"\x80\x04" + b[2:]])
def test_a_damaged_file_is_made_again(make, tmp_path, damage, caplog):
    first = drawn(trajectories(make, tmp_path, reuse=0), 1)
    path = tmp_path / "trajectories" / "trajectory-00000001.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert same(drawn(trajectories(make, tmp_path, reuse=0), 1), first)
    assert make.asked[-1] == 1 and "is damaged" in caplog.text


def test_a_file_of_other_settings_is_made_again(make, tmp_path, caplog):
    for identity in ("one", "one", "two"):
        trajectories(make, tmp_path, reuse=0, identity=identity).next(1)
    assert make.asked == [0, 1, 0, 1] and "other settings" in caplog.text


def test_a_trajectory_that_fails_leaves_no_file(tmp_path):
    def broken(number):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        trajectories(broken, tmp_path).next(1)
    assert not list(tmp_path.rglob("*.safetensors"))


class Side:
    """One of several processes, played by a thread; whoever waits for the others in vain fails."""

    def __init__(self, rank, size, barrier, votes):
        self.rank, self.size, self.first = rank, size, rank == 0
        self.barrier, self.votes = barrier, votes

    def any(self, flag):
        self.votes[self.rank] = flag
        self.barrier.wait(20)
        answer = any(self.votes)
        self.barrier.wait(20)
        return answer

    def _failures(self, text):
        return [text]

    all_or_none = Processes.all_or_none


def together(act, size=2):
    """What act(processes) returns or raises, for every process."""
    barrier, votes = threading.Barrier(size), [False] * size

    def of(rank):
        try:
            return act(Side(rank, size, barrier, votes))
        except Exception as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(of, range(size)))


@pytest.mark.parametrize("uses", [0, 1.0])
def test_processes_share_the_rows_that_one_would_draw(make, tmp_path, uses):
    alone = drawn(trajectories(make, tmp_path / "one", reuse=uses), 12, rows=6)
    makers = [Maker(), Maker()]
    parts = together(
        lambda side: drawn(trajectories(makers[side.rank], tmp_path / "two", reuse=uses, processes=side), 12, rows=3)
    )
    joined = [[*numbers(a), *numbers(b)] for a, b in zip(*parts, strict=True)]
    assert joined == [numbers(example) for example in alone]
    # side by side: each makes every other trajectory, no trajectory is made twice
    assert all(number % 2 == rank for rank, maker in enumerate(makers) for number in maker.asked)
    asked = sorted(makers[0].asked + makers[1].asked)
    assert asked == list(range(2 if uses == 0 else 6)) == sorted(make.asked)


def test_one_process_finds_a_trajectory_damaged(tmp_path):
    makers, path = [Maker(), Maker()], tmp_path / "trajectories" / "trajectory-00000001.safetensors"

    def act(side):
        return drawn(trajectories(makers[side.rank], tmp_path, reuse=0, processes=side), 2)

    first = together(act)
    path.write_bytes(path.read_bytes()[:100])
    assert all(same(*pair) for pair in zip(together(act), first, strict=True))
    assert [maker.asked for maker in makers] == [[0, 1], [1]], "who is first makes what is missing"


def test_the_seed_decides_the_rows(make, tmp_path):
    a, b, c = (numbers(trajectories(make, tmp_path, seed=seed).next(50)) for seed in (0, 0, 1))
    assert a == b != c


@pytest.mark.parametrize(("kept", "uses"), [(0, 1.0), (2, -1.0), (2, math.nan), (2, math.inf)])
def test_senseless_numbers_are_refused(make, tmp_path, kept, uses):
    with pytest.raises(InvalidConfig, match="cache_size"):
        trajectories(make, tmp_path, cache_size=kept, reuse=uses)
