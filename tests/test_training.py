import itertools
import math
from dataclasses import dataclass, fields, replace

import pytest
import torch
from problems import generator, logits_of, random_policies, random_world
from torch import nn
from torch.testing import assert_close

from ppo_toy import exact
from ppo_toy.policies import TabularPolicy, freeze
from ppo_toy.proximal import Surrogate
from ppo_toy.training import History, Schedule, train
from ppo_toy.trajectories import sample
from ppo_toy.worlds import TokenBandit, TokenSequence

NAMES = [field.name for field in fields(History)]


def bandit() -> TokenBandit:
    return TokenBandit(torch.tensor([[0.0, 1.0, 2.5], [1.0, -1.0, 0.5]]))


def reference_of(world) -> TabularPolicy:
    return TabularPolicy.random(world, generator=generator(99), scale=0.5)


def copy_of(policy: TabularPolicy, world) -> TabularPolicy:
    return TabularPolicy(world, policy.logits)


def grouped(settings: dict) -> dict:
    """The settings with those that two records hold put into them."""
    groups = {"surrogate": Surrogate, "schedule": Schedule}
    for name, record in groups.items():
        own = [field.name for field in fields(record) if field.name in settings]
        settings = settings | {name: record(**{key: settings.pop(key) for key in own})}
    return settings


def run(policy, reference, world, **changes) -> History:
    settings = {
        "beta": 0.5,
        "steps": 3,
        "batch_size": 8,
        "learning_rate": 0.1,
        "generator": generator(0),
    }
    return train(policy, reference, world, **grouped(settings | changes))


def assert_same_history(one: History, other: History) -> None:
    for name in NAMES:
        # NaN stands for a KL that was not measured, and equals itself here
        assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=0, equal_nan=True)


@dataclass
class Slow:
    """What the slow transcription of the nine steps measured."""

    rows: list
    logits: torch.Tensor
    clipped: int = 0


def slow_training(
    policy, reference, world, *, beta, steps, batch_size, learning_rate, seed, epochs=1,
    clip=math.inf, beta_old=0.0, controller=None, controller_old=None, penalty="exact",
    anneal=False,
) -> Slow:  # fmt: skip
    """Eq. 7 and 8 with the penalty to the reference, one token after the other."""
    numbers = generator(seed)
    twin = TabularPolicy(world, policy.logits)
    log_ref = reference.logits.detach().log_softmax(dim=1)
    n_tokens, n_nodes = len(world.vocabulary), len(log_ref) // len(world.prompts)
    adam = torch.optim.Adam(twin.parameters(), lr=learning_rate, maximize=True)
    result = Slow([], twin.logits)

    def kl(log_p, log_q, row):
        return sum(log_p[row, v].exp() * (log_p[row, v] - log_q[row, v]) for v in range(n_tokens))

    for step in range(steps):
        if anneal:
            adam.param_groups[0]["lr"] = learning_rate * (steps - step) / steps
        batch = sample(twin, world, batch_size, generator=numbers)
        rewards = world.reward(batch.prompts, batch.responses).tolist()
        visits = []
        for i in range(batch_size):
            row, path = n_nodes * batch.prompts[i, 0].item(), []
            for t in range(int(batch.mask[i].sum())):
                token = batch.responses[i, t].item()
                path.append((row, token))
                node = row % n_nodes
                row += n_tokens * node + token + 1 - node
            visits.append(path)
        old = twin.logits.detach().log_softmax(dim=1)
        kls = [[kl(old, log_ref, row).item() for row, _ in path] for path in visits]
        returns = [
            [rewards[i] - beta * sum(kls[i][t + 1 :]) for t in range(len(path))]
            for i, path in enumerate(visits)
        ]
        for epoch in range(epochs + 1):
            new = twin.logits.log_softmax(dim=1)
            surrogate = moved = 0.0
            if penalty == "sampled":
                for i, path in enumerate(visits):
                    spent = sum((new[at] - log_ref[at]).item() for at in path)
                    returns[i] = [rewards[i] - beta * spent] * len(path)
            for i, path in enumerate(visits):
                for t, (row, token) in enumerate(path):
                    others = [r[t] for j, r in enumerate(returns) if j != i and len(r) > t]
                    baseline = sum(others) / len(others) if others else 0.0
                    advantage = returns[i][t] - baseline
                    ratio = (new[row, token] - old[row, token]).exp()
                    edge = 1 + clip if advantage > 0 else 1 - clip
                    beyond = (ratio - edge) * advantage > 0
                    gain = edge * advantage if beyond else ratio * advantage
                    result.clipped += bool(beyond) and epoch < epochs
                    step_moved = kl(old, new, row)
                    moved = moved + step_moved.item()
                    surrogate = surrogate + gain - beta_old * step_moved
                    if penalty == "exact":
                        surrogate = surrogate - beta * kl(new, log_ref, row)
            if epoch < epochs:
                adam.zero_grad()
                (surrogate / batch_size).backward()
                adam.step()
        mean_r = sum(rewards) / batch_size
        mean_kl = sum(sum(k) for k in kls) / batch_size
        moved = moved / batch_size if epochs > 1 else math.nan
        result.rows.append((mean_r - beta * mean_kl, mean_r, mean_kl, beta, moved, beta_old))
        beta = controller(beta, mean_kl) if controller else beta
        beta_old = controller_old(beta_old, moved) if controller_old else beta_old
    return result


class Wrapped(nn.Module):
    """A policy of a user's own: a number for each token, with a number for the place added."""

    def __init__(self, n_tokens: int, length: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(length + 1, n_tokens))
        self.after = nn.Parameter(torch.zeros(n_tokens, n_tokens))

    def forward(self, prompts, responses):
        first = torch.zeros_like(self.bias[0]).expand(*responses.shape[:-1], 1, -1)
        seen = torch.cat([first, self.after[responses]], dim=-2)
        return seen + self.bias[: responses.shape[-1] + 1]


# By hand


def test_one_step_on_two_coins_by_hand():
    # Adam's first step is the learning rate times the sign of the gradient, whatever its size.
    world = TokenBandit(torch.tensor([[0.0, 4.0]]))
    reference = TabularPolicy(world, logits_of(0.75, 0.25).unsqueeze(0))
    policy = copy_of(reference, world)
    history = run(policy, reference, world, beta=0.5, steps=1, learning_rate=0.25, batch_size=64)
    up = reference.logits.detach() + torch.tensor([[-0.25, 0.25]])
    # 1e-8 in Adam's denominator, against a gradient of about 0.7
    assert_close(policy.logits.detach(), up)
    assert history.kl.tolist() == [0.0]
    assert history.beta.tolist() == [0.5]
    assert_close(history.objective, history.reward)


@pytest.mark.parametrize("runs", [(), (2,)])
def test_a_history_has_a_number_for_each_step_and_run(runs):
    world = bandit()
    reference = reference_of(world)
    policy = reference.repeat(*runs) if runs else copy_of(reference, world)
    history = run(policy, reference, world, steps=4, epochs=2)
    assert NAMES == ["objective", "reward", "kl", "beta", "kl_old", "beta_old"]
    for name in NAMES:
        column = getattr(history, name)
        assert column.shape == (4, *runs)
        assert column.dtype == torch.float64
        assert not column.requires_grad
        assert column.isfinite().all()


# Properties


@pytest.mark.parametrize("seed", range(3))
def test_from_the_reference_the_first_kl_is_0_and_no_later_one_is(seed):
    world = random_world(seed, end_token=0)
    _, reference = random_policies(world, seed)
    policy = copy_of(reference, world)
    history = run(policy, reference, world, generator=generator(seed))
    assert history.kl[0] == 0
    assert history.objective[0] == history.reward[0]
    assert (history.kl[1:] > 0).all()


def test_the_policy_is_trained_in_place_and_the_reference_is_never_changed():
    world = random_world(0, end_token=0)
    policy, reference = random_policies(world, 0)
    before, ref_before = (x.logits.detach().numpy().tobytes() for x in (policy, reference))
    parameter = policy.logits
    run(policy, reference, world, epochs=2, beta_old=1.0, clip=0.25)
    assert policy.logits is parameter
    assert policy.logits.detach().numpy().tobytes() != before
    assert reference.logits.detach().numpy().tobytes() == ref_before
    assert reference.logits.grad is None


@pytest.mark.parametrize("epochs", [1, 2])
def test_the_same_seed_gives_the_same_history_and_another_seed_another(epochs):
    world = random_world(1, end_token=0)
    policy, reference = random_policies(world, 1)
    histories, tables = [], []
    for seed in (5, 5, 6):
        torch.manual_seed(len(tables))  # the global generator is not looked at
        student = copy_of(policy, world)
        histories.append(run(student, reference, world, generator=generator(seed), epochs=epochs))
        tables.append(student.logits.detach())
    assert_same_history(histories[0], histories[1])
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(histories[0].reward, histories[2].reward)


def test_each_run_has_its_own_beta():
    world = bandit()
    reference = reference_of(world)
    betas = torch.tensor([0.0, 0.25, 4.0])
    history = run(reference.repeat(3), reference, world, beta=betas, steps=40, batch_size=32)
    assert torch.equal(history.beta, betas.expand(40, 3))
    # the harder the brake, the shorter the way
    assert history.kl[-1, 0] > history.kl[-1, 1] > history.kl[-1, 2] > 0
    assert_close(history.objective, history.reward - betas * history.kl)


def test_runs_do_not_touch_each_other():
    world = random_world(2, end_token=0)
    reference = reference_of(world)
    tables = []
    for other_beta in (0.0, 8.0):
        policy = reference.repeat(2)
        run(policy, reference, world, beta=torch.tensor([0.5, other_beta]))
        tables.append(policy.logits.detach())
    assert torch.equal(tables[0][0], tables[1][0])
    assert not torch.equal(tables[0][1], tables[1][1])


def test_the_number_of_runs_does_not_change_the_size_of_a_step():
    # Gradients of about 1e-9 are small beside the 1e-8 in Adam's denominator, so that the step
    # shows their size.
    world = TokenBandit(torch.tensor([[0.0, 1e-8]]))
    reference = TabularPolicy(world)
    sizes = []
    for runs in (1, 64):
        policy = reference.repeat(runs)
        run(policy, reference, world, steps=1, batch_size=512)
        sizes.append((policy.logits - reference.logits).abs().mean().item())
    assert 0.5 < sizes[0] / sizes[1] < 2


def test_in_one_epoch_beta_old_has_no_effect():
    world = random_world(3, end_token=0)
    policy, reference = random_policies(world, 3)
    tables = []
    for beta_old in (0.0, 100.0):
        student = copy_of(policy, world)
        history = run(student, reference, world, beta_old=beta_old, steps=5)
        tables.append(student.logits.detach())
        assert history.beta_old.tolist() == [beta_old] * 5
        assert history.kl_old.isnan().all()
    # 0 on paper; the gradient of sum_v p_v log q_v in floats is off by 1e-16
    assert_close(tables[0], tables[1])


def test_with_more_epochs_a_larger_beta_old_holds_the_policy_closer_to_the_old_one():
    world = random_world(3, end_token=0)
    _, reference = random_policies(world, 3)
    betas_old = torch.tensor([0.0, 1.0, 10.0])
    policy = reference.repeat(3)
    history = run(policy, reference, world, beta_old=betas_old, epochs=8, steps=4, batch_size=64)
    assert torch.equal(history.beta_old, betas_old.expand(4, 3))
    moved = history.kl_old.mean(dim=0)
    assert (history.kl_old > 0).all()
    assert moved[0] > 1.5 * moved[1]
    assert moved[1] > 1.5 * moved[2]


def test_with_more_epochs_a_clip_holds_the_policy_closer_to_the_old_one():
    world = random_world(4, end_token=0)
    _, reference = random_policies(world, 4)
    moved = {}
    for clip in (math.inf, 0.1):
        policy = copy_of(reference, world)
        history = run(policy, reference, world, clip=clip, epochs=8, steps=4, batch_size=64)
        assert (history.kl_old > 0).all()
        moved[clip] = history.kl_old.mean()
    assert moved[math.inf] > 1.5 * moved[0.1]


def test_each_run_has_its_own_clip():
    world = random_world(4, end_token=0)
    _, reference = random_policies(world, 4)
    policy = reference.repeat(3)
    clips = torch.tensor([math.inf, 0.5, 0.1])
    history = run(policy, reference, world, clip=clips, epochs=8, steps=4, batch_size=64)
    moved = history.kl_old.mean(dim=0)
    assert moved[0] > moved[1] > 1.5 * moved[2]


def test_the_controller_is_asked_once_a_step_and_its_answer_rules_the_next():
    world = bandit()
    policy, reference = reference_of(world), TabularPolicy(world)
    asked = []

    def double(beta, kl):
        asked.append((beta, kl))
        return 2 * beta

    history = run(policy, reference, world, beta=0.25, controller=double, steps=4, epochs=2)
    assert history.beta.tolist() == [0.25, 0.5, 1.0, 2.0]
    assert [beta for beta, _ in asked] == history.beta.tolist()
    assert [kl for _, kl in asked] == history.kl.tolist()
    assert all(type(number) is float for pair in asked for number in pair)
    assert_close(history.objective, history.reward - history.beta * history.kl)


def test_the_controller_of_beta_old_is_asked_with_kl_old():
    world = bandit()
    policy, reference = reference_of(world), TabularPolicy(world)
    asked = []

    def half(beta, kl):
        asked.append((beta, kl))
        return beta / 2

    history = run(policy, reference, world, beta_old=8.0, controller_old=half, steps=4, epochs=2)
    assert history.beta_old.tolist() == [8.0, 4.0, 2.0, 1.0]
    assert asked == list(zip(history.beta_old.tolist(), history.kl_old.tolist(), strict=True))
    assert history.beta.tolist() == [0.5] * 4


def test_a_controller_decides_for_each_run():
    world = bandit()
    reference = TabularPolicy(world)
    policy = reference_of(world).repeat(2)
    policy.logits.data[1] *= 8
    asked = []

    def by_kl(beta, kl):
        asked.append((beta, kl))
        return beta * 2 if kl > 0.5 else beta / 2

    history = run(
        policy, reference, world, beta=torch.tensor([1.0, 2.0]), controller=by_kl, steps=2
    )
    assert history.beta.tolist() == [[1.0, 2.0], [0.5, 4.0]]
    pairs = torch.stack([history.beta, history.kl], dim=-1).view(-1, 2)
    assert asked == [tuple(pair) for pair in pairs.tolist()]


def test_on_step_is_called_before_each_update():
    world = random_world(5)
    policy, reference = random_policies(world, 5)
    seen = []

    def watch(step, student):
        assert student is policy
        seen.append((step, student.logits.detach().clone()))

    start = policy.logits.detach().clone()
    run(policy, reference, world, on_step=watch, steps=3, epochs=2)
    assert [step for step, _ in seen] == [0, 1, 2]
    tables = [start, *(table for _, table in seen[1:]), policy.logits.detach()]
    assert torch.equal(seen[0][1], start)
    for one, other in itertools.pairwise(tables):
        assert not torch.equal(one, other)


def test_a_tolerance_stops_when_a_window_gains_less_in_every_run():
    world = bandit()
    reference = reference_of(world)
    # with beta = 50 there is nothing to gain; with beta = 1/4 J climbs for a while
    settings = {"beta": torch.tensor([50.0, 0.25]), "learning_rate": 0.02, "batch_size": 16}
    whole = run(reference.repeat(2), reference, world, steps=250, **settings)
    gains = [
        whole.objective[n - 50 : n].mean(dim=0) - whole.objective[n - 100 : n - 50].mean(dim=0)
        for n in range(100, 251)
    ]
    first = 100 + [bool((gain < 0.1).all()) for gain in gains].index(True)
    assert gains[0][0] < 0.1 < gains[0][1]
    assert 100 < first < 250
    stopped = run(reference.repeat(2), reference, world, steps=250, tolerance=0.1, **settings)
    assert len(stopped.objective) == first
    assert torch.equal(stopped.objective, whole.objective[:first])


def test_a_tolerance_never_stops_before_there_are_two_windows():
    world = TokenBandit(torch.zeros(1, 2))
    reference = TabularPolicy(world)
    for steps, taken in ((99, 99), (120, 100)):
        policy = copy_of(reference, world)
        history = run(policy, reference, world, steps=steps, batch_size=1, tolerance=0.5)
        assert len(history.reward) == taken
    # a gain of exactly 0 is not less than 0
    policy = copy_of(reference, world)
    assert len(run(policy, reference, world, steps=101, batch_size=1, tolerance=0.0).kl) == 101


# Edges and errors


@pytest.mark.parametrize("interrupted_at", [0, 1, 3])
@pytest.mark.parametrize("place", ["on_step", "reward"])
def test_an_interrupt_returns_the_steps_completed(place, interrupted_at, capsys):
    world = random_world(6, end_token=0)
    policy, reference = random_policies(world, 6)
    whole = run(copy_of(policy, world), reference, world, steps=5)
    calls = itertools.count()

    def interrupt(*_):
        if next(calls) == interrupted_at:
            raise KeyboardInterrupt

    def reward(prompts, responses):
        interrupt()
        return world.reward(prompts, responses)

    stopping = replace(world, reward=reward) if place == "reward" else world
    history = run(
        policy,
        reference,
        stopping,
        steps=5,
        on_step=interrupt if place == "on_step" else lambda step, policy: None,
    )
    said = capsys.readouterr().out
    assert said == f"interrupted: the history holds {interrupted_at} of 5 steps\n"
    for name in NAMES:
        expected = getattr(whole, name)[:interrupted_at]
        assert_close(getattr(history, name), expected, rtol=0, atol=0, equal_nan=True)


def test_an_interrupted_policy_is_as_after_the_last_whole_step():
    world = random_world(6, end_token=0)
    policy, reference = random_policies(world, 6)
    student = copy_of(policy, world)
    run(student, reference, world, steps=2)

    def interrupt(step, _):
        if step == 2:
            raise KeyboardInterrupt

    run(policy, reference, world, steps=5, on_step=interrupt)
    assert torch.equal(policy.logits, student.logits)


def test_other_errors_are_not_swallowed():
    world = bandit()
    policy, reference = reference_of(world), reference_of(world)

    def fail(*_):
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="the disk is full"):
        run(policy, reference, world, on_step=fail)


@pytest.mark.parametrize(
    ("setting", "number"),
    [
        ("steps", 0),
        ("steps", -1),
        ("batch_size", 0),
        ("epochs", 0),
        ("learning_rate", 0.0),
        ("learning_rate", -0.5),
        ("learning_rate", math.nan),
        ("beta", -0.5),
        ("beta", math.nan),
        ("beta_old", -0.5),
        ("clip", 0.0),
        ("clip", -0.5),
    ],
)
def test_a_setting_out_of_its_range_is_an_error_that_names_it(setting, number):
    world = bandit()
    policy, reference = reference_of(world), reference_of(world)
    with pytest.raises(ValueError, match=f"{setting} is {number}"):
        run(policy, reference, world, **{setting: number})
    assert torch.equal(policy.logits, reference.logits)


@pytest.mark.parametrize("setting", ["beta", "beta_old"])
def test_a_beta_of_one_run_that_is_negative_or_missing_is_an_error(setting):
    world = bandit()
    reference = reference_of(world)
    with pytest.raises(ValueError, match=rf"{setting} is \[1.0, -0.5\]"):
        run(reference.repeat(2), reference, world, **{setting: torch.tensor([1.0, -0.5])})
    with pytest.raises(ValueError, match=rf"{setting} has shape \(3,\).*runs are \(2,\)"):
        run(reference.repeat(2), reference, world, **{setting: torch.ones(3)})
    with pytest.raises(ValueError, match=rf"{setting} has shape \(2,\).*runs are \(\)"):
        run(copy_of(reference, world), reference, world, **{setting: torch.ones(2)})


def test_a_reward_that_is_not_a_number_is_an_error_that_names_the_response():
    world = TokenSequence(["a", "b"], 1, lambda x, y: torch.where(y[:, 0] == 1, math.nan, 0.0))
    policy, reference = TabularPolicy(world), TabularPolicy(world)
    with pytest.raises(ValueError, match=r"reward of \['b'\] is nan"):
        run(policy, reference, world, batch_size=64)
    assert torch.equal(policy.logits, reference.logits)


def test_a_policy_or_a_reference_with_another_vocabulary_is_an_error():
    world, wider = random_world(0, tokens=3, length=2), random_world(0, tokens=4, length=2)
    fits, too_wide = TabularPolicy(world), TabularPolicy(wider)
    with pytest.raises(ValueError, match="the policy has 4 tokens, the world 3"):
        run(too_wide, fits, world)
    with pytest.raises(ValueError, match="the reference has 4 tokens, the world 3"):
        run(fits, too_wide, world)


def test_a_reference_that_is_the_policy_or_holds_its_parameters_is_an_error():
    world = bandit()
    policy = reference_of(world)
    borrowed = TabularPolicy(world)
    borrowed.logits = policy.logits
    for reference in (policy, borrowed, nn.Sequential(policy)):
        with pytest.raises(ValueError, match="shares parameters with the policy"):
            run(policy, reference, world)


def test_a_token_that_only_the_policy_can_draw_is_an_error_before_any_update():
    world = bandit()
    policy = reference_of(world)
    reference = copy_of(policy, world)
    reference.logits.data[:, 1] = -math.inf
    before = policy.logits.detach().clone()
    with pytest.raises(ValueError, match=r"objective is -inf at step 0: the reference gives no"):
        run(policy, reference, world)
    assert torch.equal(policy.logits, before)


def test_a_token_that_neither_can_draw_stays_out_and_the_rest_is_trained():
    world = bandit()
    reference = reference_of(world)
    reference.logits.data[:, 1] = -math.inf
    policy = copy_of(reference, world)
    history = run(policy, reference, world, epochs=2, beta_old=1.0, clip=0.25)
    assert (policy.logits[:, 1] == -math.inf).all()
    assert policy.logits[:, [0, 2]].isfinite().all()
    assert not torch.equal(policy.logits, reference.logits)
    assert history.kl.isfinite().all()


def test_a_batch_of_one_has_no_baseline_and_still_trains():
    world = bandit()
    reference = reference_of(world)
    policy = copy_of(reference, world)
    history = run(policy, reference, world, batch_size=1)
    assert not torch.equal(policy.logits, reference.logits)
    assert history.objective.isfinite().all()


def test_a_plain_function_serves_as_the_reference():
    world = random_world(7, end_token=0)
    policy, reference = random_policies(world, 7)
    student = copy_of(policy, world)
    expected = run(policy, reference, world)
    history = run(student, lambda prompts, responses: reference(prompts, responses), world)
    assert_same_history(history, expected)
    assert torch.equal(student.logits, policy.logits)
    assert reference.logits.grad is None


def test_a_module_of_ones_own_serves_as_the_policy():
    world = random_world(8, prompts=1, end_token=0)
    policy, reference = Wrapped(3, 3), Wrapped(3, 3)
    before = exact.evaluate(policy, reference, world, 0.5).objective
    history = run(policy, reference, world, steps=60, batch_size=64)
    after = exact.evaluate(policy, reference, world, 0.5).objective
    best = exact.optimum(reference, world, 0.5).objective
    assert history.kl[0] == 0
    # it knows the token before and the place, not the whole prefix
    assert (best - after) / (best - before) < 0.5


def test_a_policy_in_single_precision_keeps_it():
    world = bandit()
    reference = reference_of(world)
    policy = reference_of(world).float()
    history = run(policy, reference, world, epochs=2, beta_old=1.0)
    assert policy.logits.dtype == torch.float32
    assert not torch.equal(policy.logits.double(), reference.logits.float().double())
    for name in NAMES:
        assert getattr(history, name).dtype == torch.float64
    # logits rounded to 24 bits: a log-ratio of 1e-7, and its square in the KL
    assert_close(history.kl[0], torch.tensor(0.0), rtol=0, atol=1e-6)


def test_a_policy_that_holds_a_parameter_of_no_use_is_trained():
    world = bandit()
    reference = reference_of(world)
    policy = copy_of(reference, world)
    policy.value = nn.Parameter(torch.full((3,), 99.0))
    run(policy, reference, world)
    assert (policy.value == 99).all()
    assert not torch.equal(policy.logits, reference.logits)


# Independent routes


@pytest.mark.parametrize("end_token", [None, 0])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"epochs": 3, "clip": 0.125},
        {"epochs": 3, "beta_old": 0.75},
        {"epochs": 3, "clip": 0.125, "beta_old": 0.25},
        {"penalty": "sampled"},
        {"epochs": 3, "clip": 0.125, "penalty": "sampled", "anneal": True},
    ],
    ids=["one-epoch", "clip", "beta-old", "both", "sampled", "sampled-anneal"],
)
def test_training_is_a_slow_loop_over_tokens_and_steps(end_token, settings):
    world = random_world(9, end_token=end_token)
    policy, reference = random_policies(world, 9)
    settings = {"beta": 0.7, "steps": 4, "batch_size": 6, "learning_rate": 0.2} | settings
    slow = slow_training(policy, reference, world, seed=1, **settings)
    history = run(policy, reference, world, generator=generator(1), **settings)
    assert_close(policy.logits.detach(), slow.logits.detach())
    for name, column in zip(NAMES, zip(*slow.rows, strict=True), strict=True):
        assert_close(getattr(history, name), torch.tensor(column), equal_nan=True)
    if "clip" in settings:
        assert slow.clipped > 5


def test_training_with_controllers_is_a_slow_loop_too():
    world = random_world(10, end_token=2)
    policy, reference = random_policies(world, 10)
    settings = {
        "beta": 0.25,
        "beta_old": 1.0,
        "controller": lambda beta, kl: beta * 2 if kl > 0.5 else beta + 0.5,
        "controller_old": lambda beta, kl: beta + kl,
        "steps": 4,
        "epochs": 2,
        "batch_size": 5,
        "learning_rate": 0.2,
    }
    slow = slow_training(policy, reference, world, seed=2, **settings)
    history = run(policy, reference, world, generator=generator(2), **settings)
    assert_close(policy.logits.detach(), slow.logits.detach())
    for name, column in zip(NAMES, zip(*slow.rows, strict=True), strict=True):
        assert_close(getattr(history, name), torch.tensor(column))


@pytest.mark.parametrize("beta", [0.25, 1.0])
def test_a_trained_bandit_earns_all_but_2_percent_of_what_there_is_to_earn(beta):
    world = TokenBandit.one_word_reply()
    reference = TabularPolicy(world, logits_of(0.30, 0.25, 0.20, 0.15, 0.07, 0.03).unsqueeze(0))
    policy = copy_of(reference, world)
    run(policy, reference, world, beta=beta, steps=200, batch_size=256, learning_rate=0.05)
    start = exact.evaluate(reference, reference, world, beta).objective
    end = exact.evaluate(policy, reference, world, beta).objective
    best = exact.optimum(reference, world, beta).objective
    assert 0 <= (best - end) / (best - start) <= 0.02


def test_runs_trained_as_one_batch_reach_the_same_optimum():
    world = random_world(11, prompts=2, tokens=3, length=2, end_token=0)
    reference = reference_of(world)
    betas = torch.tensor([0.5, 2.0]).repeat_interleave(4)
    policy = reference.repeat(8)
    run(policy, reference, world, beta=betas, steps=300, batch_size=256, learning_rate=0.05)
    end = exact.evaluate(policy, reference, world, betas)
    for run_index, beta in enumerate(betas.tolist()):
        start = exact.evaluate(reference, reference, world, beta).objective
        best = exact.optimum(reference, world, beta)
        assert 0 <= (best.objective - end.objective[run_index]) / (best.objective - start) <= 0.02


def test_the_reward_of_the_first_batch_is_the_exact_one_up_to_noise():
    world = random_world(12, end_token=0)
    policy, reference = random_policies(world, 12)
    expected = exact.evaluate(policy, reference, world, 0.5)
    history = run(policy.repeat(64), reference, world, steps=1, batch_size=256)
    for name in ("objective", "reward", "kl"):
        batches = getattr(history, name)[0]
        # five standard errors of 64 means, three times: a right simulator fails for about one
        # seed in seventy thousand
        error = batches.std() / math.sqrt(64)
        assert abs(batches.mean() - getattr(expected, name)) < 5 * error


def test_a_policy_that_starts_at_the_optimum_stays_there():
    world = random_world(13, prompts=1, tokens=2, length=2)
    reference = reference_of(world)
    best = exact.optimum(reference, world, 0.5)
    policy = TabularPolicy(world, best.policy.logits)
    run(policy, reference, world, steps=100, batch_size=256, learning_rate=0.01)
    end = exact.evaluate(policy, reference, world, 0.5)
    # noise walks to and fro; a gradient that is off would walk away, each logit by up to 1
    assert best.objective - end.objective < 0.01


def test_at_the_best_policy_for_one_prompt_the_sampled_penalty_makes_no_noise():
    # R - beta * log(pi* / ref) = beta * log Z there, the same for every response
    world = random_world(14, prompts=1)
    reference = reference_of(world)
    best = exact.optimum(reference, world, 0.5).policy.logits
    moved = {}
    for penalty in ("exact", "sampled"):
        policy = TabularPolicy(world, best)
        run(policy, reference, world, steps=1, learning_rate=0.01, penalty=penalty)
        moved[penalty] = (policy.logits - best).abs().max().item()
    assert moved["exact"] > 0.005
    # Adam divides by the gradient's size plus 1e-8: of rounding, 1e-15, it makes 1e-7 of a step.
    # (The next step would make 1e6 times as much of that, so one has to do.)
    assert moved["sampled"] < 1e-7


def test_an_interrupt_before_the_first_step_leaves_an_empty_history_of_the_same_kind():
    world = random_world(0)
    reference, _ = random_policies(world, 1)

    def stop(step, policy):
        raise KeyboardInterrupt

    history = train(
        reference.repeat(3), reference, world, beta=0.5, steps=5, batch_size=4,
        learning_rate=0.1, generator=generator(0), schedule=Schedule(on_step=stop),
    )  # fmt: skip
    assert history.kl.shape == (0, 3)
    assert history.kl.dtype == torch.float64


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"beta": math.inf}, r"beta is inf"),
        ({"learning_rate": math.inf}, "learning_rate is inf"),
        ({"clip": torch.tensor([0.1, 0.2])}, r"clip has shape \(2,\)"),
        ({"clip": 0.0}, "clip is 0.0"),
        ({"controller": lambda beta, kl: -1.0}, r"beta is \[-1.0\]"),
        ({"penalty": "k3"}, "penalty is 'k3'"),
        ({"controller_old": lambda beta, kl: beta}, "controller_old has nothing to go by"),
    ],
)
def test_a_setting_that_cannot_work_is_named(setting, message):
    world = random_world(0)
    policy, reference = random_policies(world, 1)
    settings = {"beta": 0.5, "learning_rate": 0.1} | setting
    with pytest.raises(ValueError, match=message):
        run(policy, reference, world, steps=5, batch_size=4, **settings)


def test_a_reference_with_runs_of_its_own_is_refused():
    world = random_world(0)
    policy, reference = random_policies(world, 1)
    with pytest.raises(ValueError, match=r"the reference has runs \(3,\), the policy \(\)"):
        train(
            policy, reference.repeat(3), world, beta=0.5, steps=5, batch_size=4,
            learning_rate=0.1, generator=generator(0),
        )  # fmt: skip


# What moves, what is moody, what is not random


class Drifting(torch.nn.Module):
    """A reference that answers from a copy at first, and from the policy later."""

    def __init__(self, policy, calls):
        super().__init__()
        self.copy, self.calls = freeze(policy), calls
        self.policy = [policy]  # a list hides it from `parameters`

    def forward(self, prompts, responses):
        self.calls -= 1
        return (self.copy if self.calls > 0 else self.policy[0])(prompts, responses)


@pytest.mark.parametrize("calls", [1, 5, 12])
def test_a_reference_that_begins_to_move_later_is_found_out(calls):
    world = random_world(0)
    policy = TabularPolicy(world)
    with pytest.raises(ValueError, match="the reference moved when the policy was updated"):
        run(policy, Drifting(policy, calls), world, steps=20)


class Moody(torch.nn.Module):
    """A policy with a part that acts in training alone."""

    def __init__(self, part):
        super().__init__()
        self.logits, self.part = torch.nn.Parameter(torch.zeros(9, 3)), part

    def forward(self, prompts, responses):
        rows = self.logits[: responses.shape[1] + 1]
        return rows.expand(*responses.shape[:-1], *rows.shape)


@pytest.mark.parametrize("part", [torch.nn.Dropout(0.01), torch.nn.BatchNorm1d(3)])
def test_dropout_and_batch_norm_in_train_mode_are_refused_at_every_door(part):
    world = random_world(0)
    policy = Moody(part)
    calm = TabularPolicy(world)
    message = "gives two answers to one question, as dropout does: call its eval"
    for enter in (
        lambda: run(policy, calm, world),
        lambda: run(TabularPolicy(world), policy, world),
        lambda: sample(policy, world, 4, generator=generator(0)),
        lambda: exact.evaluate(policy, calm, world, 1.0),
        lambda: exact.optimum(policy, world, 1.0),
    ):
        with pytest.raises(ValueError, match=message):
            enter()
    policy.eval()
    sample(policy, world, 4, generator=generator(0))


def test_a_dropout_that_drops_nothing_may_stay_in_train_mode():
    sample(Moody(torch.nn.Dropout(0.0)), random_world(0), 4, generator=generator(0))


@pytest.mark.parametrize("given", [None, 1, "seed"])
def test_what_is_no_generator_is_refused(given):
    world = random_world(0)
    with pytest.raises(ValueError, match="generator is .*; it must be a torch.Generator"):
        run(TabularPolicy(world), freeze(TabularPolicy(world)), world, generator=given)
    with pytest.raises(ValueError, match="generator is .*; it must be a torch.Generator"):
        sample(TabularPolicy(world), world, 4, generator=given)


@pytest.mark.parametrize("name", ["steps", "batch_size", "epochs"])
@pytest.mark.parametrize("given", [2.5, True, "2", None])
def test_what_is_no_count_is_refused_by_name(name, given):
    world = random_world(0)
    with pytest.raises(ValueError, match=f"{name} is .*; it must be an integer"):
        run(TabularPolicy(world), freeze(TabularPolicy(world)), world, **{name: given})


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"beta": None}, "beta is None; it must be 0 or more"),
        ({"beta": "1"}, "beta is '1'; it must be 0 or more"),
        ({"learning_rate": None}, "learning_rate is None; it must be positive"),
        ({"controller": None}, "controller is None; it must be a Callable"),
        ({"controller": lambda beta, kl: None}, r"beta is \[None\]; it must be 0 or more"),
        ({"surrogate": "exact"}, "surrogate is 'exact'; it must be a Surrogate"),
        ({"schedule": 1}, "schedule is 1; it must be a Schedule"),
    ],
)
def test_what_is_no_number_and_no_function_is_named(wrong, named):
    world, settings = random_world(0), {"beta": 0.5, "learning_rate": 0.1, **wrong}
    policy, reference = random_policies(world, 0)
    with pytest.raises(ValueError, match=named):
        train(policy, reference, world, steps=2, batch_size=3, generator=generator(0), **settings)


def test_whom_to_tell_and_what_steers_are_functions():
    with pytest.raises(ValueError, match="on_step is None; it must be a Callable"):
        Schedule(on_step=None)
    with pytest.raises(ValueError, match="controller_old is 2; it must be a Callable"):
        Surrogate(controller_old=2)
