"""Makes what the three controls of `beta.md` show: every number by `ppo_toy.exact`.

    python web/controls/values.py OUT_DIR

writes `values.js`, one line that sets `COURSE`, and lays beside it the scripts, the styles and the
drawing library, D3, as the package mpld3 carries it. A page that loads them needs no network.
"""

import json
import shutil
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from mpld3.urls import D3_LOCAL
from torch import Tensor

from ppo_toy import exact, plots, recipes, reviews
from ppo_toy.data import read_preferences
from ppo_toy.policies import TabularPolicy
from ppo_toy.rewards import RewardModel
from ppo_toy.trajectories import enumerate_all, log_probs, of_tokens, score
from ppo_toy.worlds import TokenBandit, TokenSequence, ToyReviews

DOUBLE = torch.float64
HERE = Path(__file__).parent
SCRIPTS = ("d3.min.js", "values.js", "shared.js", "mountain.js", "frontier.js", "budget.js")
STYLES = "controls.css"
# 40 settings to a power of ten, as they are shown: 0.0501, ..., 1, ..., 10 reward per nat.
BETAS = [float(f"{10 ** (k / 40):.3g}") for k in range(-52, 41)]
BUDGETS = [round(0.1 * k, 1) for k in range(1, 101)]  # nats per response
TEAMS, EACH = 5, 100  # proxies, and the preferences each is learned from


def mountain() -> dict[str, Any]:
    """Returns the three words of lesson 01 and, for each of `BETAS`, where the top of J is."""
    words, rewards, p_ref = ["meh", "good", "wow"], [0.0, 1.0, 2.0], [1 / 2, 1 / 4, 1 / 4]
    world = TokenBandit(torch.tensor([rewards], dtype=DOUBLE), words)
    reference = TabularPolicy(world, torch.tensor([p_ref], dtype=DOUBLE).log())
    best = [exact.optimum(reference, world, beta) for beta in BETAS]
    tops = [o.policy.logits.softmax(dim=-1)[0].tolist() for o in best]
    given = {"words": words, "rewards": rewards, "reference": p_ref, "beta": BETAS}
    return given | _worth(best) | {"policy": tops}


def frontier() -> dict[str, Any]:
    """Returns the frontier of the brackets of lesson 04 and the favourites of each best policy."""
    world = replace(TokenSequence.brackets(), response_length=4)
    reference = TabularPolicy(world).double()  # all logits 0
    listed = enumerate_all(reference, world)
    said = [
        "".join(world.vocabulary[v] for v in tokens[mask])
        for tokens, mask in zip(listed.responses, listed.mask, strict=True)
    ]
    best = [exact.optimum(reference, world, beta) for beta in BETAS]
    laws = [enumerate_all(o.policy, world).weights for o in best]
    texts = {"responses": said, "rewards": score(world, listed).tolist()}
    return {"beta": BETAS} | _worth(best) | texts | _favourites(laws, listed.weights, most=4)


def budget() -> dict[str, Any]:
    """Returns, for six proxies of lesson 10, what the best policy of each budget says and earns.

    Five are learned from 100 preferences each, the sixth is the reward model of lesson 08. All are
    in points: with mean and spread of gold under the reference. Where a budget is more than the
    best policy can spend, it spends less.
    """
    world, reference = ToyReviews(prompts=reviews.PROMPTS[:1]), recipes.reference_policy()
    listed = enumerate_all(reference, world)
    log_ref = log_probs(reference, listed).double().sum(dim=-1).log_softmax(dim=0)
    gold, grammar = score(world, listed).double(), reviews.grammar
    allowed = of_tokens(grammar(listed.prompts, listed.tokens[:, :-1]), listed).sum(dim=-1)
    proxies = [in_points(r, gold, log_ref.exp()) for r in _proxies(reference, world, listed)]
    found = [_path(reference, world, listed, log_ref, r, gold) for r in proxies]
    used = sorted({i for path in found for row in path["favourites"] for i in row})
    for path, proxy in zip(found, proxies, strict=True):
        path["favourites"] = [[used.index(i) for i in row] for row in path["favourites"]]
        path["worth"] = proxy[used].tolist()
    return {
        "budget": BUDGETS,
        "proxies": found,
        "responses": [reviews.decode(listed.responses[i]) for i in used],
        "before": log_ref[used].exp().tolist(),
        "gold": gold[used].tolist(),
        "inside": allowed[used].isfinite().tolist(),
    }


def in_points(proxy: Tensor, gold: Tensor, p_ref: Tensor) -> Tensor:
    """Returns a proxy, [B], with the mean and the spread that gold has under the reference."""
    away, gold_away = (r - p_ref @ r for r in (proxy, gold))
    return p_ref @ gold + away * (p_ref @ gold_away**2 / (p_ref @ away**2)).sqrt()


def learn(away: Tensor, decay: float = 0.1) -> Tensor:
    """Returns the head w, [D], that fits the choices best, by Newton's method (lesson 10).

    Args:
        away: features of the chosen less those of the rejected response, [N, D].
        decay: the loss is Bradley and Terry's plus decay / 2 times the square of w.
    """
    eye = torch.eye(away.shape[1], dtype=away.dtype)
    w = 0 * eye[0]
    for _ in range(20):
        p = (away @ w).sigmoid()
        gradient = decay * w - (1 - p) @ away / len(away)
        curvature = decay * eye + (away.T * p * (1 - p)) @ away / len(away)
        w = w - torch.linalg.solve(curvature, gradient)
    return w


def write(out: Path) -> None:
    """Writes `SCRIPTS` and `STYLES` into a folder, which is made if it is missing."""
    out.mkdir(parents=True, exist_ok=True)
    course = {"styles": styles(), "mountain": mountain(), "frontier": frontier()}
    text = json.dumps(_rounded(course | {"budget": budget()}), separators=(",", ":"))
    (out / "values.js").write_text(f"const COURSE = {text};\n", encoding="utf-8")
    for name in (*SCRIPTS[2:], STYLES):
        shutil.copyfile(HERE / name, out / name)
    shutil.copyfile(D3_LOCAL, out / "d3.min.js")


def styles() -> dict[str, dict[str, Any]]:
    """Returns colour, width and dashes, in pixels, of each line of `plots.LINES`."""
    named = {"-": [], "--": "dashed", "-.": "dashdot", ":": "dotted"}
    found = {}
    for quantity, line in plots.LINES.items():
        dashes = named[line["ls"]] if isinstance(line["ls"], str) else line["ls"][1]
        if isinstance(dashes, str):
            dashes = matplotlib.rcParams[f"lines.{dashes}_pattern"]
        width = 1.25 * line["lw"]  # the figures have 100 pixels to the inch, a point is 1/72
        found[quantity] = {"colour": line["color"], "width": width}
        found[quantity]["dashes"] = [width * length for length in dashes]
    return found


def _worth(best: Iterable[exact.Optimum]) -> dict[str, list[float]]:
    """J*, R* and KL* of each setting."""
    best = list(best)
    return {name: [getattr(o, name) for o in best] for name in ("objective", "reward", "kl")}


def _favourites(laws: list[Tensor], before: Tensor, most: int) -> dict[str, Any]:
    """The most probable responses of each law, [B], and how probable they are."""
    tops = [p.topk(most) for p in laws]
    return {
        "favourites": [top.indices.tolist() for top in tops],
        "now": [top.values.tolist() for top in tops],
        "before": before.tolist(),
    }


def _proxies(reference: Any, world: ToyReviews, listed: Any) -> list[Tensor]:
    """Scores of every review, [69905] each: of the five teams, and of the model of lesson 08."""
    trunk = RewardModel.from_policy(reference, world).trunk
    trunk.value_head = torch.nn.Identity()  # so `values` gives the features
    pairs = read_preferences()[: TEAMS * EACH]
    sides = [
        _in_parts(trunk.values, pairs.prompts, y, _last) for y in (pairs.chosen, pairs.rejected)
    ]
    away = sides[0] - sides[1]
    h = _in_parts(trunk.values, listed.prompts, listed.responses, _last)
    teams = [h @ learn(away[EACH * k : EACH * (k + 1)]) for k in range(TEAMS)]
    model = recipes.reward_model()
    return [*teams, _in_parts(model, listed.prompts, listed.responses)]


def _last(values: Tensor, responses: Tensor) -> Tensor:
    return values[range(len(values)), reviews.mask_of(responses).sum(dim=1)]


@torch.no_grad()
def _in_parts(model: Any, prompts: Tensor, responses: Tensor, pick: Any = None) -> Tensor:
    parts = zip(prompts.split(512), responses.split(512), strict=True)
    found = [(pick(model(x, y), y) if pick else model(x, y)) for x, y in parts]
    return torch.cat(found).double()


def _path(reference: Any, world: Any, listed: Any, log_ref: Tensor, r: Tensor, gold: Tensor) -> Any:
    """Best policies of each budget: price, KL, mean proxy and gold, five favourites."""
    table = torch.zeros([len(world.vocabulary)] * 4, dtype=DOUBLE)
    table[listed.responses.unbind(dim=1)] = r
    world = replace(world, reward=lambda _, y: table[y.unbind(dim=1)])
    known = exact.frontier(reference, world, np.geomspace(1000, 1e-5, 48))
    aims = [*BUDGETS, BUDGETS[-1] + 0.1]  # the last is there to lie beyond the end
    for _ in range(3):  # each time nearer
        betas = np.exp(np.interp(np.log(aims), *np.log((known.kl, known.beta))))
        fine = exact.frontier(reference, world, betas)
        both = [np.concatenate(pair) for pair in zip(known, fine, strict=True)]
        order = both[1].argsort(kind="stable")
        known = exact.Frontier(*(column[order] for column in both))
    fine = exact.Frontier(*(column[: len(BUDGETS)] for column in fine))
    laws = [(log_ref + r / beta).softmax(dim=0) for beta in fine.beta]
    found = _favourites(laws, gold.new_zeros(0), most=5)
    found["gold"] = [(p @ gold).item() for p in laws]
    found |= {name: getattr(fine, name).tolist() for name in ("beta", "kl", "reward")}
    del found["before"]
    return found


def _rounded(x: Any) -> Any:
    """Numbers to six digits: more is never shown."""
    if isinstance(x, dict):
        return {key: _rounded(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [_rounded(value) for value in x]
    return float(f"{x:.6g}") if isinstance(x, float) else x


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    write(Path(sys.argv[1]))
