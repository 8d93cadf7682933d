/* (c) A KL budget: what the proxy promises, what gold delivers, what is said (lesson 10). */
"use strict";

(() => {
  const { budget, proxies, responses, before, gold, inside } = COURSE.budget;
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
    const turn = d3.scan(path.gold, (a, b) => b - a);
    const x = across(budget[k]);
    Control.segment(svg, [x, up(-0.5)], [x, up(path.reward[k])], "target");
    if (furthest[chosen] > turn && turn < budget.length - 1) {
      const [tx, ty] = [across(budget[turn]), up(path.gold[turn])];
      Control.dot(svg, [tx, ty], "gold", true);
      Control.write(svg, [tx, ty - 16], "gold turns", { quantity: "gold", anchor: "middle" });
    }
    const side = budget[k] > 7 ? { dx: -12, anchor: "end" } : { dx: 12, anchor: "start" };
    const named = { reward: ["proxy: the promise", -8], gold: ["gold: what comes", 20] };
    for (const [quantity, [text, dy]] of Object.entries(named)) {
      const y = up(path[quantity][k]);
      Control.dot(svg, [x, y], quantity);
      Control.write(svg, [x + side.dx, y + dy], text, { quantity, anchor: side.anchor });
    }
    return height;
  }

  function readout(k) {
    const { term, sign, fixed, three } = Control;
    const path = proxies[chosen];
    return [
      term({ name: "reward", quantity: "reward", label: "proxy promises (points)",
             value: fixed(path.reward[k], 2) }),
      term({ name: "gold", quantity: "gold", label: "gold delivers (points)",
             value: fixed(path.gold[k], 2) }),
      term({ name: "kl", quantity: "kl", label: "KL* spent (nats)", value: fixed(path.kl[k], 2) }),
      term({ name: "beta", quantity: "beta", label: "β that spends it (points per nat)",
             value: three(path.beta[k]) }),
    ].join(sign("·"));
  }

  function below(place, k) {
    const path = proxies[chosen];
    const rows = path.favourites[k].map((i, n) => [
      responses[i] + (inside[i] ? "" : ' <abbr title="outside the language">†</abbr>'),
      { before: before[i], now: path.now[k][n] },
      Control.fixed(path.worth[i], 1), Control.fixed(gold[i], 1),
    ]);
    Control.table(place, { head: ["the film:", "π*", "proxy", "gold"], rows,
      caption: "The five reviews it gives most. The mark is the reference; † is outside the " +
        "language: no one ever wrote or judged it." });
  }

  Control.build("budget", {
    count: budget.length,
    start: budget.indexOf(1),
    label: "The budget, in nats",
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
