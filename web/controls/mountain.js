/* (a) J's mountain over three words: its top wanders as β moves (lesson 01). */
"use strict";

(() => {
  const { words, rewards, reference, policy, beta, objective } = COURSE.mountain;
  const LEVELS = [5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02]; // reward below the top
  const OURS = [1 / 4, 1 / 4, 1 / 2]; // the policy of section 1.1
  const GRID = 121;

  const worth = (p) => d3.sum(p, (x, v) => x * rewards[v]);
  const nats = (p) => d3.sum(p, (x, v) => (x > 0 ? x * Math.log(x / reference[v]) : 0));

  /* R and KL on a grid of probabilities of words 1 and 2; beyond the triangle, those of its edge. */
  const points = d3.range(GRID * GRID).map((i) => {
    const [b, c] = [i % GRID, Math.floor(i / GRID)].map((n) => n / (GRID - 1));
    const total = Math.max(1, b + c);
    return [Math.max(0, 1 - b - c), b / total, c / total];
  });
  const ground = points.map((p) => ({ reward: worth(p), kl: nats(p) }));

  function draw(svg, width, k) {
    const side = Math.min(width - 56, 460);
    const [left, top] = [(width - side) / 2, 30];
    const tall = (side * Math.sqrt(3)) / 2;
    const corners = [[left, top + tall], [left + side, top + tall], [left + side / 2, top]];
    const at = (p) => [0, 1].map((axis) => d3.sum(p, (x, v) => x * corners[v][axis]));

    const j = ground.map((g) => g.reward - beta[k] * g.kl);
    const hills = d3.contours().size([GRID, GRID])
      .thresholds(LEVELS.map((below) => objective[k] - below))(j);
    const clip = svg.append("clipPath").attr("id", "triangle");
    clip.append("path").attr("d", `M${corners.join("L")}Z`);
    svg.append("path").attr("d", `M${corners.join("L")}Z`).attr("class", "ground");
    // d3.contours puts sample i at i + 1/2; this carries the grid onto the triangle.
    const [[x0, y0], b, c] = corners;
    const step = GRID - 1;
    const carry = d3.geoTransform({
      point(x, y) {
        const [s, t] = [(x - 0.5) / step, (y - 0.5) / step];
        this.stream.point(x0 + s * (b[0] - x0) + t * (c[0] - x0),
                          y0 + s * (b[1] - y0) + t * (c[1] - y0));
      },
    });
    svg.append("g").attr("clip-path", "url(#triangle)").selectAll("path").data(hills).enter().append("path")
      .attr("class", "hill").attr("d", d3.geoPath(carry));

    Control.pen(svg.append("path").attr("d", d3.line()(policy.map(at))), "exact");
    const [rx, ry] = at(reference);
    Control.dot(svg, [rx, ry], "reference");
    Control.write(svg, [rx - 12, ry + 5], "reference", { quantity: "reference", anchor: "end" });
    const [ox, oy] = at(OURS);
    Control.dot(svg, [ox, oy], "kl", true);
    Control.write(svg, [ox - 15, oy - 4], "the ring", { quantity: "kl", anchor: "end" });
    const [px, py] = at(policy[k]);
    Control.dot(svg, [px, py], "exact");
    Control.write(svg, [px + 12, py + 5], "π*");
    const named = [["middle", 20], ["middle", 20], ["middle", -10]];
    words.forEach((word, v) => {
      const [anchor, down] = named[v];
      Control.write(svg, [corners[v][0], corners[v][1] + down], word, { anchor });
    });
    return legend(svg, width, top + tall + 48);
  }

  /* One swatch for each level; the last is the darkest. */
  function legend(svg, width, y) {
    const each = Math.min(46, (width - 8) / LEVELS.length);
    const left = (width - each * LEVELS.length) / 2;
    LEVELS.forEach((level, i) => {
      for (let layers = 0; layers <= i; layers += 1) {
        svg.append("rect").attr("class", "hill").attr("x", left + i * each).attr("y", y)
          .attr("width", each).attr("height", 12);
      }
      Control.write(svg, [left + (i + 0.5) * each, y + 27], level, { anchor: "middle" })
        .attr("class", "label");
    });
    Control.write(svg, [width / 2, y + 46], "at most so far below the top (reward)",
      { anchor: "middle" }).attr("class", "label");
    return y + 54;
  }

  Control.build("mountain", {
    count: beta.length,
    start: beta.indexOf(0.501),
    label: "Price",
    ends: ["0.05 · light brake", "heavy brake · 10"],
    say: (k) => `β = ${Control.three(beta[k])} reward per nat`,
    describe: "Contours of J over the triangle of the three words, a dashed curve of the best " +
      "policies of all β from the corner wow to the reference, and on it the best for this β",
    readout(k) {
      const j = worth(OURS) - beta[k] * nats(OURS);
      return Control.equation(COURSE.mountain, k) + `<span class="aside">The policy in the ring: ` +
        `J = <b data-name="ours">${Control.fixed(j, 3)}</b>, which is ` +
        `<b data-name="gap">${Control.fixed(objective[k] - j, 3)}</b> below the top.</span>`;
    },
    draw,
    below(place, k) {
      const rows = words.map((word, v) =>
        [word, rewards[v], { before: reference[v], now: policy[k][v] }]);
      Control.table(place, { head: ["word", "R", "π*"], rows,
        caption: "What the best policy says; the mark is the reference." });
    },
  });
})();
