import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from problems import generator, random_logits
from torch import nn
from torch.testing import assert_close

from ppo_toy import exact, recipes
from ppo_toy.gpt import Attention, Block, Cache, GPTConfig, TinyGPT
from ppo_toy.policies import fingerprint, freeze
from ppo_toy.training import train
from ppo_toy.trajectories import (
    Trajectories,
    enumerate_all,
    log_probs,
    per_step_kl,
    sample,
    step_log_probs,
)

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
SMALL = {"n_tokens_in": 9, "n_tokens_out": 5, "context": 9, "width": 12, "heads": 3}


def lively(seed: int, **changes) -> TinyGPT:
    """A model far from uniform, in which every parameter matters, biases and gains too."""
    model = TinyGPT(GPTConfig(**{**SMALL, **changes}), generator=generator(seed))
    numbers = generator(seed + 1000)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=numbers, dtype=torch.float64)
            parameter.add_(0.3 * drawn)
    return model


def texts(seed: int, n: int = 6, length: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    numbers = generator(seed)
    prompts = torch.randint(9, (n, 3), generator=numbers)
    return prompts, torch.randint(5, (n, length), generator=numbers)


def chat_world(length: int, end_token: int | None = 4) -> SimpleNamespace:
    return SimpleNamespace(
        prompts=torch.tensor([[5, 8, 6], [7, 0, 5], [8, 8, 8]]),
        vocabulary=["a", "b", "c", "d", "stop"],
        response_length=length,
        end_token=end_token,
        reward=lambda prompts, responses: (responses == 2).double().sum(dim=1),
    )


def unpadded(model, prompt, response) -> torch.Tensor:
    """Log-probabilities before each token of one response, [t, V], that holds no padding."""
    logits = model(prompt.unsqueeze(0), response.unsqueeze(0))[0, :-1]
    return logits - logits.exp().sum(dim=-1, keepdim=True).log()


def ragged() -> Trajectories:
    """Responses of 1, 3, 6, 2 and 6 tokens to different prompts; padding of 99 shows any leak."""
    prompts, responses = texts(5, n=5)
    lengths = torch.tensor([1, 3, 6, 2, 6])
    mask = torch.arange(6) < lengths.unsqueeze(1)
    return Trajectories(prompts, responses.where(mask, 99), mask, torch.full((5,), 0.2))


def drawn() -> Trajectories:
    """Responses that a model like these ended itself; the end token stands behind as padding."""
    return sample(lively(24), chat_world(6), 12, generator=generator(0))


def gradients(scalar: torch.Tensor, model: nn.Module) -> list[torch.Tensor]:
    return list(torch.autograd.grad(scalar, list(model.parameters())))


# By hand


def test_one_head_that_looks_back_by_hand():
    # Width 2, one head: q = k = v = x for x1 = (1, 0) and x2 = (0, 2). The first token sees itself
    # alone. The second scores 0 and 4 / sqrt(2) and mixes x1 and x2 by their softmax.
    attention = Attention(GPTConfig(1, 1, 2, width=2, heads=1))
    with torch.no_grad():
        attention.query_key_value.weight.copy_(torch.eye(2).repeat(3, 1))
        attention.out.weight.copy_(torch.eye(2))
        attention.query_key_value.bias.zero_()
        attention.out.bias.zero_()
    x = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    p = math.exp(4 / math.sqrt(2)) / (1 + math.exp(4 / math.sqrt(2)))
    expected = torch.tensor([[[1.0, 0.0], [1 - p, 2 * p]]])
    assert_close(attention(x, torch.ones(2, 2).tril().bool()), expected)


def test_the_model_of_the_lessons_has_26993_parameters():
    # embeddings 24 * 32 + 6 * 32; a block 2 norms of 64, 32 * 96 + 96, 32 * 32 + 32, and
    # 32 * 128 + 128 + 128 * 32 + 32; the last norm 64; the head 32 * 17 + 17
    block = 2 * 64 + 32 * 97 - 32 + 96 + 32 * 33 + 32 * 128 + 128 + 128 * 32 + 32
    expected = 24 * 32 + 6 * 32 + 2 * block + 64 + 32 * 17 + 17
    model = TinyGPT(recipes.CONFIG, generator=generator(0))
    assert sum(parameter.numel() for parameter in model.parameters()) == expected == 26993
    valued = TinyGPT(replace(recipes.CONFIG, value_head=True), generator=generator(0))
    assert sum(parameter.numel() for parameter in valued.parameters()) == expected + 33


# The transformer against a slow one


def slow_norm(x, norm):
    x = x - x.mean()
    return x / (x.square().mean() + 1e-5).sqrt() * norm.weight + norm.bias


def slow_attention(attention, xs):
    """Of the last of the tokens xs, by a loop over heads and positions."""
    width, heads = len(xs[0]), attention.heads
    maps, biases = attention.query_key_value.weight, attention.query_key_value.bias
    size, gathered = width // heads, []
    for head in range(heads):
        q, k, v = (
            slice(part * width + head * size, part * width + (head + 1) * size) for part in range(3)
        )
        query = maps[q] @ xs[-1] + biases[q]
        scores = [(maps[k] @ x + biases[k]) @ query / math.sqrt(size) for x in xs]
        total = sum(score.exp() for score in scores)
        values = [maps[v] @ x + biases[v] for x in xs]
        mixed = sum(s.exp() / total * v for s, v in zip(scores, values, strict=True))
        gathered.append(mixed)
    return attention.out.weight @ torch.cat(gathered) + attention.out.bias


def slow_block(block, xs):
    normed = [slow_norm(x, block.norm_attention) for x in xs]
    out = []
    for i, x in enumerate(xs):
        x = x + slow_attention(block.attention, normed[: i + 1])
        hidden = block.mlp[0].weight @ slow_norm(x, block.norm_mlp) + block.mlp[0].bias
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        out.append(x + block.mlp[2].weight @ hidden + block.mlp[2].bias)
    return out


def slow_states(model, text):
    """What stands before the head at each position of one text."""
    xs = [model.tokens.weight[v] + model.positions.weight[i] for i, v in enumerate(text)]
    for block in model.blocks:
        xs = slow_block(block, xs)
    return [slow_norm(x, model.norm) for x in xs]


@pytest.mark.parametrize("heads", [1, 3])
def test_a_block_is_the_loop_over_heads_and_positions(heads):
    block = lively(0, heads=heads).blocks[1]
    x = random_logits(1, 2, 4, 12)
    got = block(x, torch.ones(4, 4).tril().bool())
    for row, expected in zip(got, x, strict=True):
        assert_close(row, torch.stack(slow_block(block, list(expected))))


@pytest.mark.parametrize("length", [0, 4])
def test_position_i_holds_the_logits_of_response_token_i(length):
    model = lively(0, value_head=True)
    prompts, responses = texts(1, n=2, length=length)
    logits, values = model(prompts, responses), model.values(prompts, responses)
    assert logits.shape == (2, length + 1, 5)
    assert values.shape == (2, length + 1)
    for row in range(2):
        for i in range(length + 1):
            text = [*prompts[row].tolist(), *responses[row, :i].tolist()]
            state = slow_states(model, text)[-1]
            assert_close(logits[row, i], model.head.weight @ state + model.head.bias)
            assert_close(
                values[row, i], model.value_head.weight[0] @ state + model.value_head.bias[0]
            )


# Properties


@pytest.mark.parametrize("at", range(6))
def test_a_token_changes_nothing_before_it_and_everything_after(at):
    model = lively(0)
    prompts, responses = texts(1)
    changed = responses.clone()
    changed[:, at] = (changed[:, at] + 1) % 5
    before, after = model(prompts, responses), model(prompts, changed)
    assert_close(after[:, : at + 1], before[:, : at + 1], rtol=0, atol=1e-12)  # rounding alone
    # the chance that a difference below 1e-6 arises by itself is nil: logits are of order 1
    assert ((after - before)[:, at + 1 :].abs().amax(dim=-1) > 1e-6).all()


def test_every_token_of_the_prompt_and_its_place_matter():
    model = lively(0)
    prompts, responses = texts(1)
    for other in (prompts.roll(1, dims=1), (prompts + 1) % 9):
        different = (other != prompts).any(dim=1)
        change = (model(other, responses) - model(prompts, responses)).abs().amax(dim=-1)
        assert (change[different] > 1e-6).all()


def test_every_parameter_has_a_gradient():
    model = lively(0)
    prompts, responses = texts(1)
    coefficients = random_logits(2, 6, 7, 5)
    for gradient in gradients((model(prompts, responses) * coefficients).sum(), model):
        assert (gradient != 0).any()


def test_a_new_model_is_close_to_uniform_and_values_everything_at_0():
    for seed in range(5):
        config = GPTConfig(20, 17, 8, value_head=True)
        model = TinyGPT(config, generator=generator(seed))
        prompts = torch.randint(20, (50, 4), generator=generator(seed))
        responses = torch.randint(17, (50, 4), generator=generator(seed))
        log_p = model(prompts, responses).log_softmax(dim=-1)
        entropy = -(log_p.exp() * log_p).sum(dim=-1)
        # logits have a standard deviation of about 0.1, and half its square is missing: 0.005
        assert (math.log(17) - entropy).max() < 0.02
        assert (entropy < math.log(17)).all()
        assert (model.values(prompts, responses) == 0).all()


def test_a_value_head_leaves_the_logits_as_they_are():
    plain = TinyGPT(GPTConfig(**SMALL), generator=generator(0))
    valued = TinyGPT(GPTConfig(**SMALL, value_head=True), generator=generator(0))
    assert torch.equal(plain(*texts(1)), valued(*texts(1)))


def test_the_value_head_learns():
    model = TinyGPT(GPTConfig(**SMALL, value_head=True), generator=generator(0))
    model.values(*texts(1)).sum().backward()
    assert (model.value_head.weight.grad != 0).any()


# The weights


def test_the_weights_are_drawn_in_double_precision_and_then_rounded():
    double = TinyGPT(GPTConfig(**SMALL), generator=generator(3))
    asked_for = TinyGPT(GPTConfig(**SMALL), generator=generator(3), dtype=torch.float32)
    torch.set_default_dtype(torch.float32)
    by_default = TinyGPT(GPTConfig(**SMALL), generator=generator(3))
    for exact_one, *others in zip(
        double.parameters(), asked_for.parameters(), by_default.parameters(), strict=True
    ):
        assert exact_one.dtype == torch.float64
        for other in others:
            assert other.dtype == torch.float32
            assert torch.equal(other, exact_one.float())
    weight = double.tokens.weight
    assert (weight != weight.float().double()).any()


def test_the_numbers_come_from_the_generator_and_nowhere_else():
    before = torch.get_rng_state()
    numbers = generator(3)
    first = TinyGPT(GPTConfig(**SMALL), generator=numbers)
    second = TinyGPT(GPTConfig(**SMALL), generator=numbers)
    assert torch.equal(torch.get_rng_state(), before)
    assert fingerprint(first) != fingerprint(second)
    torch.manual_seed(1)
    again = TinyGPT(GPTConfig(**SMALL), generator=generator(3))
    assert fingerprint(again) == fingerprint(first)


def test_the_spread_of_the_weights_is_that_of_the_docstring():
    model = TinyGPT(GPTConfig(50, 50, 50, width=64, heads=4), generator=generator(0))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            expected = (0.1 if name == "head.weight" else 1.0) / 8
            # five standard errors of a standard deviation: one tensor in two million fails
            error = abs(parameter.std().item() / expected - 1)
            assert error < 5 / math.sqrt(2 * parameter.numel()), name
        else:
            assert (parameter == (1.0 if "norm" in name and "weight" in name else 0.0)).all(), name


@pytest.mark.parametrize("seed", range(3))
def test_a_text_of_one_token_goes_its_own_way_to_the_same_logits_and_gradients(seed):
    model = lively(seed)
    prompts, responses = texts(seed)
    alone = model(prompts[:, :1], responses[:, :0])
    among = model(prompts[:, :1], responses)[:, :1]
    coefficients = random_logits(seed, *alone.shape)
    assert_close(alone, among)
    assert_close(
        gradients((coefficients * alone).sum(), model),
        gradients((coefficients * among).sum(), model),
    )


# The cache


def uncached(model):
    """The same policy without `next_logits`, so that `sample` asks for the whole prefix."""
    return lambda prompts, responses: model(prompts, responses)


# the two routes add in another order; 1e-5 is what single precision leaves of logits of order 1
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("seed", range(3))
def test_the_cached_logits_are_those_of_the_whole_prefix(seed, dtype, atol):
    model = lively(seed).to(dtype)
    prompts, responses = texts(seed)
    cache = None
    for t in range(7):
        logits, cache = model.next_logits(prompts, responses[:, :t], cache)
        assert logits.shape == (6, 5)
        assert_close(logits, model(prompts, responses[:, :t])[:, -1], rtol=0, atol=atol)
        assert cache.length == 3 + t


def test_a_cache_may_take_in_several_tokens_at_once():
    model = lively(0)
    prompts, responses = texts(1)
    _, cache = model.next_logits(prompts, responses[:, :1])
    logits, cache = model.next_logits(prompts, responses[:, :4], cache)
    assert_close(logits, model(prompts, responses[:, :4])[:, -1])
    logits, _ = model.next_logits(prompts, responses, cache)
    assert_close(logits, model(prompts, responses)[:, -1])


def test_only_what_the_cache_does_not_hold_is_read():
    model, read = lively(0), []
    model.tokens.register_forward_hook(lambda module, args, out: read.append(args[0].shape[1]))
    sample(model, chat_world(6), 4, generator=generator(0))
    assert read == [3, 1, 1, 1, 1, 1]


def test_room_for_the_whole_text_is_taken_once_and_filled():
    model = lively(0)
    prompts, responses = texts(1)
    _, cache = model.next_logits(prompts, responses[:, :0])
    assert cache.memory.shape == (2, 2, 9, 6, 3, 4)
    first = cache.memory[:, :, :3].clone()
    _, later = model.next_logits(prompts, responses[:, :1], cache)
    assert later.memory.data_ptr() == cache.memory.data_ptr()
    assert torch.equal(later.memory[:, :, :3], first)


def test_what_lies_in_the_room_beyond_the_tokens_read_is_never_seen():
    model = lively(0)
    prompts, responses = texts(1)
    cache = Cache(torch.full((2, 2, 9, 6, 3, 4), math.nan))
    for t in range(7):
        logits, cache = model.next_logits(prompts, responses[:, :t], cache)
        assert logits.isfinite().all()


def test_the_cache_leaves_no_gradient_behind():
    logits, cache = lively(0).next_logits(*texts(1))
    assert not logits.requires_grad
    assert not cache.memory.requires_grad
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("end_token", [None, 4])
@pytest.mark.parametrize("seed", range(3))
def test_the_same_tokens_are_drawn_with_and_without_the_cache(seed, end_token):
    model, world = lively(seed), chat_world(6, end_token)
    numbers, same_numbers = generator(seed), generator(seed)
    cached = sample(model, world, 200, generator=numbers)
    plain = sample(uncached(model), world, 200, generator=same_numbers)
    assert torch.equal(cached.prompts, plain.prompts)
    assert torch.equal(cached.responses, plain.responses)
    assert torch.equal(cached.mask, plain.mask)
    assert torch.equal(numbers.get_state(), same_numbers.get_state())


# Variable lengths


def test_the_mask_ends_with_the_first_end_token_of_each_response_drawn():
    batch = drawn()
    for response, mask in zip(batch.responses.tolist(), batch.mask.tolist(), strict=True):
        n = response.index(4) + 1 if 4 in response else 6
        assert mask == [True] * n + [False] * (6 - n)
        assert response[n:] == [4] * (6 - n)
    # from those that end at once to those that never do
    assert set(batch.mask.sum(dim=1).tolist()) == {1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize("responses", [ragged, drawn])
@pytest.mark.parametrize("seed", range(2))
def test_padded_log_probs_are_those_of_each_response_alone_in_value_and_gradient(seed, responses):
    model, batch = lively(seed), responses()
    coefficients = random_logits(seed, len(batch.mask), 6)
    got = log_probs(model, batch)
    assert (got[~batch.mask] == 0).all()
    total = 0
    for row, (prompt, response, mask) in enumerate(
        zip(batch.prompts, batch.responses, batch.mask, strict=True)
    ):
        n = int(mask.sum())
        alone = unpadded(model, prompt, response[:n])[torch.arange(n), response[:n]]
        assert_close(got[row, :n], alone)
        total = total + (alone * coefficients[row, :n]).sum()
    assert_close(gradients((got * coefficients).sum(), model), gradients(total, model))


@pytest.mark.parametrize("responses", [ragged, drawn])
@pytest.mark.parametrize("seed", range(2))
def test_the_padded_kl_is_that_of_each_response_alone_in_value_and_gradient(seed, responses):
    model, reference, batch = lively(seed), lively(seed + 10), responses()
    coefficients = random_logits(seed, len(batch.mask), 6)
    got = per_step_kl(model, reference, batch)
    assert (got[~batch.mask] == 0).all()
    assert (got[batch.mask] > 0).all()
    total = 0
    for row, (prompt, response, mask) in enumerate(
        zip(batch.prompts, batch.responses, batch.mask, strict=True)
    ):
        n = int(mask.sum())
        log_p, log_q = (unpadded(m, prompt, response[:n]) for m in (model, reference))
        alone = (log_p.exp() * (log_p - log_q.detach())).sum(dim=-1)
        assert_close(got[row, :n], alone)
        total = total + (alone * coefficients[row, :n]).sum()
    assert_close(gradients((got * coefficients).sum(), model), gradients(total, model))


# In the course's loop


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 7, 50, 200])
def test_a_reference_that_is_a_copy_has_a_kl_of_exactly_0(n, dtype):
    model = lively(0).to(dtype)
    batch = sample(model, chat_world(5), n, generator=generator(1))
    assert (per_step_kl(model, freeze(model), batch) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_improves_j_and_leaves_the_reference_as_it_was(dtype):
    world = chat_world(3)
    config = GPTConfig(9, 5, 6, width=16)
    policy = TinyGPT(config, generator=generator(0), dtype=dtype)
    reference = freeze(policy)
    print_before = fingerprint(reference)
    before = exact.evaluate(policy, reference, world, 0.5)
    history = train(
        policy, reference, world, beta=0.5, steps=40, batch_size=64, learning_rate=3e-3,
        generator=generator(1),
    )  # fmt: skip
    after = exact.evaluate(policy, reference, world, 0.5)
    best = exact.optimum(reference, world, 0.5)
    assert history.kl[0] == 0
    assert before.kl == 0
    # the gap to the best policy shrinks to less than a third
    assert best.objective - after.objective < (best.objective - before.objective) / 3
    assert after.objective < best.objective
    assert fingerprint(reference) == print_before != fingerprint(policy)


def test_the_exact_gradient_is_that_of_finite_differences():
    world, policy, reference = chat_world(2), lively(0), lively(1)
    got = exact.gradient(policy, reference, world, 0.7)
    h = 1e-5
    for number, parameter in enumerate(policy.parameters()):
        direction = random_logits(number, *parameter.shape)
        worth = []
        for step in (h, -2 * h):
            with torch.no_grad():
                parameter.add_(step * direction)
            worth.append(exact.evaluate(policy, reference, world, 0.7).objective)
        with torch.no_grad():
            parameter.add_(h * direction)
        slope = torch.tensor((worth[0] - worth[1]) / (2 * h))
        # the central difference leaves h^2, and rounding 1e-16 / h
        assert_close((got[number] * direction).sum(), slope, rtol=1e-5, atol=1e-7)


def test_the_best_policy_against_a_transformer_is_worth_what_optimum_says():
    world, reference = chat_world(3), lively(0)
    best = exact.optimum(reference, world, 0.7)
    worth = exact.evaluate(best.policy, reference, world, 0.7)
    for got, expected in zip(worth, (best.objective, best.reward, best.kl), strict=True):
        assert_close(torch.tensor(got), torch.tensor(expected))


@pytest.mark.parametrize("device", DEVICES)
def test_the_same_numbers_give_the_same_tokens_on_every_device(device):
    model, world = lively(0), chat_world(6)
    here = sample(model, world, 100, generator=generator(1))
    moved = freeze(model).to(device)
    there = sample(moved, world, 100, generator=generator(1))
    assert there.responses.device.type == device
    assert torch.equal(there.responses.cpu(), here.responses)
    assert_close(log_probs(moved, there).cpu(), log_probs(model, here).detach())
    assert fingerprint(moved) == fingerprint(model)


@pytest.mark.parametrize("device", DEVICES)
def test_training_goes_the_same_way_on_every_device(device):
    histories = []
    for where in ("cpu", device):
        policy = TinyGPT(GPTConfig(9, 5, 6, width=16), generator=generator(0))
        reference = freeze(policy).to(where)
        histories.append(
            train(
                policy.to(where), reference, chat_world(3), beta=0.5, steps=5, batch_size=32,
                learning_rate=3e-3, generator=generator(1),
            )
        )  # fmt: skip
    assert_close(histories[0].objective, histories[1].objective)
    assert_close(histories[0].kl, histories[1].kl)


# Errors


@pytest.mark.parametrize(
    ("prompt", "response", "message"),
    [
        ([1, 9, 2], [0], "a prompt holds the token 9; it must be 0 to 8"),
        ([1, -1, 2], [0], "a prompt holds the token -1; it must be 0 to 8"),
        ([1, 8, 2], [0, 5], "a response holds the token 5; it must be 0 to 4"),
        ([1, 8, 2], [-2], "a response holds the token -2; it must be 0 to 4"),
        (
            [1, 8, 2],
            [0] * 7,
            "a prompt of 3 tokens and a response of 7 do not fit: the context is 9",
        ),
        ([], [0], "a prompt of 0 tokens and a response of 1 do not fit: .* has at least 1"),
    ],
)
def test_a_text_that_the_model_cannot_read_is_an_error(prompt, response, message):
    model = lively(0, value_head=True)
    text = (torch.tensor([prompt], dtype=torch.long), torch.tensor([response]))
    for ask in (model, model.values, model.next_logits):
        with pytest.raises(ValueError, match=message):
            ask(*text)


def test_a_text_as_long_as_the_context_is_read():
    assert lively(0)(*texts(0, length=6)).shape == (6, 7, 5)


def test_a_world_whose_responses_are_longer_than_the_context_is_an_error():
    with pytest.raises(ValueError, match="a response of 7 do not fit: the context is 9"):
        sample(lively(0), chat_world(8), 2, generator=generator(0))


def test_a_model_without_a_value_head_has_no_values():
    with pytest.raises(ValueError, match="no value head"):
        lively(0).values(*texts(0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *[({name: 0}, f"{name} is 0") for name in (*SMALL, "layers")],
        ({"width": 10}, "width 10 cannot be shared out among 3 heads"),
        ({"n_tokens_out": 10}, "n_tokens_out, 10, is above n_tokens_in, 9"),
    ],
)
def test_sizes_that_cannot_be_are_an_error(changes, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**{**SMALL, **changes})


def test_the_pieces_are_those_of_the_lessons():
    model = lively(0)
    assert [type(block) for block in model.blocks] == [Block, Block]
    assert isinstance(model.blocks[0].attention, Attention)


def test_every_family_is_asked_about_once_and_answers_as_the_whole_list_does():
    world, model = chat_world(3), lively(0)
    batch = enumerate_all(model, world)
    whole = step_log_probs(model, batch)
    picked = whole.gather(-1, batch.tokens.unsqueeze(-1)).squeeze(-1).masked_fill(~batch.mask, 0)
    assert_close(log_probs(model, batch), picked)
