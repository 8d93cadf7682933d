/* (c) A KL budget: what the proxy promises, what gold delivers, what is said (lesson 10). */
"use strict";

(() => {
  const { budget, proxies, responses, before, gold: golden, inside } = COURSE.budget;
  const NAMES = [...d3.range(5).map((team) => `100 preferences, team ${team}`),
    "2,500 preferences (lesson 08)"];
  const furthest = proxies.map(() => 0); // how far each has been seen
  let chosen = 4;

  const upTo = (values, k) => values.slice(0, k + 1);

  function draw(svg, width, k) {
    const height = Math.max(300, Math.min(380, 0.7 * width));
    const path = proxies[chosen];
    furthest[chosen] = Math.max(furthest[chosen], k);
    const { across, up } = Control.axes(svg, width, height, {
      x: [0, 10], y: [-0.5, d3.max([8, ...path.reward])],
      xLabel: "KL budget (nats per response)", yLabel: "mean reward (points)",
    });
    const curve = (values, to) =>
      d3.line()(upTo(values, to).map((y, i) => [across(budget[i]), up(y)]));
    for (const quantity of ["reward", "gold"]) {
      Control.pen(svg.append("path").attr("d", curve(path[quantity], furthest[chosen])), quantity)
        .attr("class", "pen faint");
      Control.pen(svg.append("path").attr("d", curve(path[quantity], k)), quantity);
    }
    const x = across(budget[k]);
    Control.segment(svg, [x, up(-0.5)], [x, up(path.reward[k])], "target");
    markTurn(svg, path.gold, (i) => [across(budget[i]), up(path.gold[i])]);
    const side = x + 70 > width ? { dx: -12, anchor: "end" } : { dx: 12, anchor: "start" };
    const named = { reward: "proxy", gold: "gold" };
    for (const [quantity, text] of Object.entries(named)) {
      const [y, other] = [path[quantity][k], path[quantity === "gold" ? "reward" : "gold"][k]];
      Control.dot(svg, [x, up(y)], quantity);
      const at = [x + side.dx, up(y) + (y > other || up(y) > height - 70 ? -12 : 22)];
      Control.write(svg, at, text, { quantity, anchor: side.anchor });
    }
    return height;
  }

  /* Where gold was highest, once it has been seen to fall from there. */
  function markTurn(svg, path, at) {
    const turn = d3.scan(path, (a, b) => b - a);
    if (path[furthest[chosen]] > path[turn] - 0.01 || furthest[chosen] < turn) return;
    const [x, y] = at(turn);
    Control.dot(svg, [x, y], "gold", true);
    Control.write(svg, [Math.max(x, 90), y - 16], "gold turns", { quantity: "gold", anchor: "middle" });
  }

  function readout(k) {
    const { fixed, three } = Control;
    const { reward, gold, kl, beta } = proxies[chosen];
    const of = (name, value, label, unit) =>
      Control.term({ name, quantity: name, value, label, unit });
    return [
      of("reward", fixed(reward[k], 2), "proxy promises", "points"),
      of("gold", fixed(gold[k], 2), "gold delivers", "points"),
      of("kl", fixed(kl[k], 2), "KL* spent", "nats"),
      of("beta", beta[k] < 0.001 ? "< 0.001" : three(beta[k]), "its price, β", "points / nat"),
    ].join("");
  }

  function below(place, k) {
    const path = proxies[chosen];
    const rows = path.favourites[k].map((i, n) => [
      responses[i] + (inside[i] ? "" : ' <abbr title="outside the language">†</abbr>'),
      { before: before[i], now: path.now[k][n] },
      Control.fixed(path.worth[i], 1), Control.fixed(golden[i], 1),
    ]);
    Control.table(place, { head: ["the film:", "π*", "proxy", "gold"], rows,
      caption: "The five reviews it gives most. The mark is the reference; † is outside the " +
        "language: no one ever wrote or judged it." });
  }

  Control.build("budget", {
    count: budget.length,
    start: budget.indexOf(1),
    label: "Budget",
    ends: ["0.1 · stay near", "go far · 10"],
    say: (k) => `at most ${budget[k].toFixed(1)} nats`,
    describe: "Mean proxy and mean gold of the best policy over its KL budget: the proxy rises " +
      "all along, gold rises, turns and falls for the proxies of 100 preferences",
    before(root) {
      const options = NAMES.map((name, i) =>
        `<option value="${i}"${i === chosen ? " selected" : ""}>${name}</option>`);
      root.querySelector(".knob").insertAdjacentHTML("afterbegin",
        `<p class="choice"><label for="budget-proxy">The proxy has learned from</label> ` +
        `<select id="budget-proxy">${options.join("")}</select></p>`);
      root.querySelector("select").addEventListener("input", (event) => {
        chosen = Number(event.target.value);
      });
    },
    readout, draw, below,
  });
})();
