/* (b) The frontier of reward and KL, with the tangent of slope β and where it starts (lesson 04). */
"use strict";

(() => {
  const values = COURSE.frontier;
  const { beta, kl, reward, objective, responses, rewards, favourites, now, before } = values;
  const X = [0, 4.2];
  const Y = [-0.5, 2.3];

  function draw(svg, width, k) {
    const height = Math.max(300, Math.min(400, 0.75 * width));
    const { across, up } = Control.axes(svg, width, height, {
      x: X, y: Y, xLabel: "KL to the reference (nats per response)", yLabel: "R (reward)",
    });
    const at = (x, y) => [across(x), up(y)];
    const line = d3.line()(kl.map((x, i) => at(x, reward[i])));
    const here = at(kl[k], reward[k]);
    Control.write(svg, at(0.6, 2.1), "no policy comes up here", { quantity: "reference" });
    Control.pen(svg.append("path").attr("d", line), "exact");
    const end = Math.min(X[1], (Y[1] - objective[k]) / beta[k]);
    Control.segment(svg, at(0, objective[k]), at(end, objective[k] + beta[k] * end), "beta");
    Control.segment(svg, at(0, reward[k]), here, "reward");
    Control.segment(svg, here, at(kl[k], Y[0]), "kl");
    Control.segment(svg, at(0, objective[k]), at(0, reward[k]), "kl").attr("class", "pen thick")
      .attr("stroke-dasharray", null);
    Control.dot(svg, at(0, objective[k]), "objective");
    Control.dot(svg, here, "exact");
    names(svg, at, k);
    return height;
  }

  /* Names stand clear of each other; near the axis there is no room for those of the costs. */
  function names(svg, at, k) {
    const name = ([x, y], dx, dy, text, quantity = "exact") =>
      Control.write(svg, [x + dx, y + dy], text, { quantity });
    const [start, top] = [at(0, objective[k]), at(0, reward[k])];
    const room = at(kl[k], 0)[0] - start[0] > 64;
    name(start, 12, 16, "J*", "objective");
    if (room && start[1] - top[1] > 30) {
      name(at(0, (reward[k] + objective[k]) / 2), 8, 4, "β KL*", "kl");
    }
    if (room) name(at(kl[k], Y[0]), 8, -8, "KL*", "kl");
    name(at(kl[k], reward[k]), room ? 6 : 14, room ? 20 : 5, "π*");
  }

  Control.build("frontier", {
    count: beta.length,
    start: beta.indexOf(0.501),
    label: "Price",
    ends: ["0.05 · light brake", "heavy brake · 10"],
    say: (k) => `β = ${Control.three(beta[k])} reward per nat`,
    describe: "The dashed frontier rises steeply from the reference and levels off at reward 2; " +
      "its tangent at the best policy has the slope β and meets the vertical axis at J*",
    readout: (k) => Control.equation(values, k),
    draw,
    below(place, k) {
      const rows = favourites[k].map((i, n) => [
        `<code>${responses[i]}</code>`, Control.fixed(rewards[i], 1),
        { before: before[i], now: now[k][n] },
      ]);
      Control.table(place, { head: ["response", "R", "π*"], rows,
        caption: "The four responses it gives most; the mark is the reference." });
    },
  });
})();
