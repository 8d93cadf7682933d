"""The three controls of the page "β in the hand": their values, and what a browser shows."""

import importlib
import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ppo_toy import exact, recipes, reviews
from ppo_toy.policies import TabularPolicy
from ppo_toy.rewards import tabulated
from ppo_toy.trajectories import enumerate_all, score
from ppo_toy.worlds import TokenBandit, TokenSequence, ToyReviews

WEB = Path(__file__).parent.parent / "web"
SIX_DIGITS = {"rtol": 1e-5, "atol": 1e-6}  # the page keeps six
pytest.importorskip("mpld3", reason="the drawing library comes with the extra web")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("controls")
    subprocess.run([sys.executable, WEB / "controls" / "values.py", out], check=True)
    return out


@pytest.fixture(scope="module")
def course(folder):
    text = (folder / "values.js").read_text(encoding="utf-8")
    return json.loads(text.removeprefix("const COURSE = ").removesuffix(";\n"))


def three_words(course):
    given = course["mountain"]
    world = TokenBandit(torch.tensor([given["rewards"]]), given["words"])
    return TabularPolicy(world, torch.tensor([given["reference"]]).log()), world


def brackets():
    world = replace(TokenSequence.brackets(), response_length=4)
    return TabularPolicy(world), world


def test_each_control_has_sixty_settings_and_the_page_stays_under_two_megabytes(folder, course):
    assert min(len(course[x]["beta"]) for x in ("mountain", "frontier")) >= 60
    assert len(course["budget"]["budget"]) >= 60
    assert sum(file.stat().st_size for file in folder.iterdir()) < 2e6


def test_the_mountain_s_tops_are_the_closed_form(course):
    given = course["mountain"]
    assert given["beta"][0] < 0.051
    assert given["beta"][-1] == 10
    for k, beta in enumerate(given["beta"]):
        tilted = [
            q * math.exp(r / beta) for q, r in zip((1 / 2, 1 / 4, 1 / 4), range(3), strict=True)
        ]
        best = [x / sum(tilted) for x in tilted]
        reward = best[1] + 2 * best[2]
        by_hand = [beta * math.log(sum(tilted)), reward, reward / beta - math.log(sum(tilted))]
        assert np.allclose(given["policy"][k], best, **SIX_DIGITS)
        found = [given[name][k] for name in ("objective", "reward", "kl")]
        assert np.allclose(found, by_hand, **SIX_DIGITS)


@pytest.mark.parametrize("control", ["mountain", "frontier"])
def test_between_two_settings_the_best_policy_is_worth_more_than_either_s_line(course, control):
    # J*(beta) = max over policies of R - beta KL: above each policy's line, below each chord.
    given = course[control]
    reference, world = three_words(course) if control == "mountain" else brackets()
    beta, height, kl = (np.array(given[name]) for name in ("beta", "objective", "kl"))
    for k in range(0, len(beta) - 1, 7):
        between = math.sqrt(beta[k] * beta[k + 1])
        best = exact.optimum(reference, world, between).objective
        for end in (k, k + 1):
            assert best > height[end] - kl[end] * (between - beta[end]) - 2e-5  # six digits
        assert best < np.interp(between, beta, height) + 2e-5
        assert best > height[k + 1]


@pytest.mark.parametrize("control", ["mountain", "frontier"])
def test_the_tangent_has_the_slope_beta_and_starts_at_the_height_of_the_top(course, control):
    given = course[control]
    beta, height, reward, kl = (
        np.array(given[name]) for name in ("beta", "objective", "reward", "kl")
    )
    assert np.allclose(reward - beta * kl, height, atol=2e-5)  # 10 times a KL of six digits
    assert (np.diff(kl) <= 0).all()
    assert (np.diff(reward) <= 0).all()
    assert (np.diff(kl) < 0)[beta[1:] > 0.15].all()  # below that they differ in no digit kept
    assert (np.diff(reward) < 0)[beta[1:] > 0.15].all()
    clear = np.diff(kl) < -1e-2  # enough digits for a slope
    assert clear.sum() > 20
    slope = np.diff(reward)[clear] / np.diff(kl)[clear]
    assert (slope > beta[:-1][clear] * 0.99).all()
    assert (slope < beta[1:][clear] * 1.01).all()


def test_the_frontier_ends_where_only_the_two_best_responses_are_left(course):
    given = course["frontier"]
    assert abs(given["kl"][0] - math.log(81 / 2)) < 1e-3
    two = [given["responses"][i] for i in given["favourites"][0][:2]]
    assert sorted(two) == ["(())", "()()"]
    assert np.allclose(given["now"][0][:2], 1 / 2, atol=1e-3)
    near = np.interp(0.65, given["beta"], given["kl"])
    assert abs(near - 1) < 0.02  # "at 1 nat β is about 0.65"


def test_the_budgets_are_spent_and_no_more(course):
    given = course["budget"]
    for path in given["proxies"]:
        assert np.allclose(path["kl"], given["budget"], atol=2e-3)  # shown to two places
        assert (np.diff(path["reward"]) > 0).all()
        assert (np.diff(path["beta"]) < 0).all()


def test_the_five_poor_proxies_are_those_of_lesson_10(course):
    given = course["budget"]
    gold = np.array([path["gold"] for path in given["proxies"]])
    at = given["budget"].index
    poor = gold[:5, [at(3.0), at(9.0)]]
    assert np.allclose(poor.mean(axis=0), [2.4, 1.6], atol=0.06)
    assert np.allclose([poor[:, 1].min(), poor[:, 1].max()], [0.3, 3.4], atol=0.12)
    turns = np.array(given["budget"])[gold.argmax(axis=1)]
    assert turns[3] < 1
    assert turns[2] > 5
    assert gold[5, -1] > given["proxies"][5]["reward"][-1]
    for path in given["proxies"][:5]:  # most of what it says then nobody ever judged
        strange = [not given["inside"][i] for i in path["favourites"][at(8.0)][:2]]
        assert any(strange)


def test_promise_gold_and_favourites_are_those_of_the_exact_optimum(course):
    given, reference = course["budget"], recipes.reference_policy()
    plain = ToyReviews(prompts=reviews.PROMPTS[:1])
    world = tabulated(replace(plain, reward=recipes.reward_model()))
    listed = enumerate_all(reference, world)
    raw, gold, p_ref = score(world, listed), score(plain, listed), listed.weights
    assert len(raw) == 69_905
    spread = [(p_ref @ (r - p_ref @ r) ** 2).sqrt().item() for r in (raw, gold)]
    path, unit = given["proxies"][5], spread[1] / spread[0]  # points per raw reward
    for k in (4, 29):
        best = exact.optimum(reference, world, path["beta"][k] / unit)
        p = enumerate_all(best.policy, world).weights
        promise = (p_ref @ gold).item() + unit * (best.reward - (p_ref @ raw).item())
        found = [path[name][k] for name in ("kl", "reward", "gold")]
        assert np.allclose(found, [best.kl, promise, (p @ gold).item()], atol=1e-4)
        top = p.topk(5)
        assert np.allclose(path["now"][k], top.values, atol=1e-4)
        said = [reviews.decode(listed.responses[i]) for i in top.indices]
        assert [given["responses"][i] for i in path["favourites"][k]] == said


@pytest.fixture(scope="module")
def browser():
    reason = "the browser test needs playwright and a Chromium of the distribution"
    api = pytest.importorskip("playwright.sync_api", reason=reason)
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if path is None:
        pytest.skip(reason)
    with api.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def scripts():
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(WEB)
        return importlib.import_module("controls.values").SCRIPTS


@pytest.fixture(params=[(1280, "light"), (390, "dark")], ids=["wide", "phone"])
def page(request, browser, folder, scripts):
    width, theme = request.param
    opened = browser.new_page(viewport={"width": width, "height": 844})
    complaints = []
    opened.on("console", lambda said: complaints.append(said.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(standalone(folder, theme, scripts))
    yield opened
    assert complaints == []
    opened.close()


def standalone(folder, theme, scripts):
    """The address of a page with nothing but the controls, as `beta.md` has them."""
    text = (WEB / "beta.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```\{raw\} html\n(.*?)```", text, re.DOTALL)
    loaded = "".join(f'<script defer src="{name}"></script>' for name in scripts)
    head = (
        f'<!doctype html><html lang="en" data-theme="{theme}"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>controls</title>'
        f'<link rel="stylesheet" href="controls.css">{loaded}</head>'
    )
    file = folder / f"{theme}.html"
    file.write_text(f"{head}<body>{''.join(blocks)}</body></html>", encoding="utf-8")
    return file.as_uri()


def shown(page, control):
    """The numbers of a readout by their names."""
    terms = page.locator(f"#{control} .readout [data-name]").evaluate_all(
        "all => all.map(one => [one.dataset.name, one.textContent])"
    )
    return {name: float(text.replace("−", "-").replace("< ", "")) for name, text in terms}


def settings(page, control, count):
    """Moves a range by keyboard, then by value, and says where it should stand."""
    handle = page.locator(f"#{control}-range")
    handle.focus()
    for keys, k in ((["Home"], 0), (["ArrowRight"] * 2, 2), (["End"], count - 1)):
        for key in keys:
            page.keyboard.press(key)
        yield k
    for k in (count // 3, count // 2):
        handle.fill(str(k))
        yield k


@pytest.mark.parametrize("control", ["mountain", "frontier"])
def test_the_shown_numbers_are_those_of_the_exact_optimum(page, course, control):
    reference, world = three_words(course) if control == "mountain" else brackets()
    betas = course[control]["beta"]
    for k in settings(page, control, len(betas)):
        seen, best = shown(page, control), exact.optimum(reference, world, betas[k])
        assert seen["beta"] == betas[k]
        for name in ("objective", "reward", "kl"):
            assert abs(seen[name] - getattr(best, name)) < 6e-4  # shown to three places
        if control == "mountain":
            ours = TabularPolicy(world, torch.tensor([[0.25, 0.25, 0.5]]).log())
            worth = exact.evaluate(ours, reference, world, betas[k]).objective
            assert abs(seen["ours"] - worth) < 6e-4
            assert abs(seen["gap"] - (best.objective - worth)) < 6e-4
        said = page.locator(f"#{control}-range").get_attribute("aria-valuetext")
        assert said == page.locator(f"#{control} .setting").text_content()


def test_a_budget_shows_what_it_buys_for_each_proxy(page, course):
    given = course["budget"]
    for which in ("3", "5"):
        page.select_option("#budget-proxy", which)
        path = given["proxies"][int(which)]
        for k in settings(page, "budget", len(given["budget"])):
            seen = shown(page, "budget")
            for name in ("reward", "gold", "kl"):
                assert abs(seen[name] - path[name][k]) < 6e-3  # shown to two places
            first = page.locator("#budget tbody th").first.text_content()
            assert first.removesuffix(" †") == given["responses"][path["favourites"][k][0]]


def test_pictures_are_drawn_and_nothing_sticks_out(page):
    assert page.locator(".control svg").count() == 3
    wide = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    assert page.evaluate(wide)
    for control in ("mountain", "frontier", "budget"):
        assert page.locator(f"#{control} svg path").count() > 3
        inside = page.locator(f"#{control} svg text").evaluate_all(
            "all => all.every(one => { const [a, b] = [one, one.ownerSVGElement]"
            ".map(x => x.getBoundingClientRect());"
            "return a.left > b.left - 1 && a.right < b.right + 1; })"
        )
        assert inside
