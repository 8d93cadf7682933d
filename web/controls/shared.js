/* What the three controls of beta.md share. COURSE is written by values.py; D3 draws. */
"use strict";

const Control = (() => {
  const fixed = (x, digits) => {
    const text = Math.abs(x).toFixed(digits);
    return (x < 0 && Number(text) !== 0 ? "−" : "") + text;
  };
  const three = d3.format(".3r"); // digits that count: 0.0501, 1.41, 10.0

  /* The course's line for a quantity; its colour follows the theme, see controls.css. */
  function pen(selection, quantity) {
    const { width, dashes } = COURSE.styles[quantity];
    return selection
      .attr("class", "pen")
      .style("stroke", `var(--${quantity})`)
      .attr("stroke-width", width)
      .attr("stroke-dasharray", dashes.join(" ") || null);
  }

  function segment(svg, [x1, y1], [x2, y2], quantity) {
    return pen(svg.append("path").attr("d", `M${x1},${y1}L${x2},${y2}`), quantity);
  }

  function dot(svg, [x, y], quantity, hollow = false) {
    return svg
      .append("circle")
      .attr("class", hollow ? "ring" : "dot")
      .attr("cx", x)
      .attr("cy", y)
      .attr("r", hollow ? 9 : 6)
      .style(hollow ? "stroke" : "fill", `var(--${quantity})`);
  }

  function write(svg, [x, y], text, { quantity = "exact", anchor = "start" } = {}) {
    return svg
      .append("text")
      .attr("class", "name")
      .attr("x", x)
      .attr("y", y)
      .attr("text-anchor", anchor)
      .style("fill", `var(--${quantity}-text)`)
      .text(text);
  }

  /* Two axes with quantity and unit; returns their scales. */
  function axes(svg, width, height, { x, y, xLabel, yLabel }) {
    const left = 44;
    const [top, bottom, right] = [26, 44, 12];
    const across = d3.scaleLinear().domain(x).range([left, width - right]);
    const up = d3.scaleLinear().domain(y).range([height - bottom, top]);
    const place = (to, axis) =>
      svg.append("g").attr("class", "axis").attr("transform", `translate(${to})`).call(axis);
    const minus = (v) => String(v).replace("-", "−");
    place([0, height - bottom], d3.axisBottom(across).ticks(width / 70).tickFormat(minus));
    place([left, 0], d3.axisLeft(up).ticks(6).tickFormat(minus));
    const label = (at, text, anchor) =>
      write(svg, at, text, { anchor }).attr("class", "label");
    label([(left + width - right) / 2, height - 6], xLabel, "middle");
    label([2, 14], yLabel, "start");
    return { across, up };
  }

  /* One number of the readout, with its name and unit below. */
  const term = ({ name, quantity, value, label, unit }) =>
    `<span class="term" style="--c: var(--${quantity}-text)"><b data-name="${name}">${value}</b> ` +
    `<small>${label} <span>${unit}</span></small></span>`;
  const sign = (text) => `<span class="sign">${text}</span>`;

  /* J* = R* − β KL*, in numbers. */
  function equation({ objective, reward, beta, kl }, k) {
    const of = (name, value, label, unit) => term({ name, quantity: name, value, label, unit });
    return [
      of("objective", fixed(objective[k], 3), "J*", "reward"), sign("="),
      of("reward", fixed(reward[k], 3), "R*", "reward"), sign("−"),
      of("beta", three(beta[k]), "β", "reward / nat"), sign("×"),
      of("kl", fixed(kl[k], 3), "KL*", "nats"),
    ].join("");
  }

  /* Rows of a table: a text, then probabilities before and now with a bar, then numbers. */
  function table(place, { head, rows, caption }) {
    const bar = ({ before, now }) =>
      `<td>${fixed(now, 2)}</td><td class="bar" aria-hidden="true">` +
      `<i style="width: ${100 * now}%"></i><s style="left: ${100 * before}%"></s></td>`;
    const cell = (x) => (typeof x === "object" ? bar(x) : `<td>${x}</td>`);
    const line = ([first, ...rest]) =>
      `<tr><th scope="row">${first}</th>${rest.map(cell).join("")}</tr>`;
    const wide = (x) => (x === "π*" ? ' colspan="2"' : "");
    const top = head.map((x) => `<th scope="col"${wide(x)}>${x}</th>`).join("");
    place.innerHTML =
      `<table><caption>${caption}</caption><thead><tr>${top}</tr></thead>` +
      `<tbody>${rows.map(line).join("")}</tbody></table>`;
  }

  /* Builds a control in the element of that id and keeps it drawn.

     count, start: how many settings, and which is shown first
     label, ends: of the range input; say(k): its value in words
     describe: what the picture shows, for those who do not see it
     readout(k): html; draw(svg, width, k); below(place, k): the table */
  function build(id, { count, start, label, ends, say, describe, readout, draw, below, before }) {
    const root = document.getElementById(id);
    root.innerHTML =
      `<div class="knob"><label for="${id}-range">${label}</label>` +
      `<output class="setting" for="${id}-range" aria-live="off"></output>` +
      `<input type="range" id="${id}-range" min="0" max="${count - 1}" step="1" value="${start}">` +
      `<div class="ends" aria-hidden="true"><span>${ends[0]}</span><span>${ends[1]}</span></div>` +
      `</div><output class="readout" for="${id}-range" aria-live="polite"></output>` +
      `<div class="panels"><div class="picture"></div><div class="beside"></div></div>`;
    const find = (name) => root.querySelector(name);
    const range = find("input[type=range]");
    if (before) before(root);
    const show = () => {
      const k = Number(range.value);
      find(".setting").textContent = say(k);
      range.setAttribute("aria-valuetext", say(k));
      find(".readout").innerHTML = readout(k);
      const picture = find(".picture");
      picture.textContent = "";
      const width = Math.max(250, picture.clientWidth);
      const svg = d3.select(picture).append("svg").attr("role", "img").attr("aria-label", describe);
      const height = draw(svg, width, k);
      svg.attr("width", width).attr("height", height).attr("viewBox", [0, 0, width, height]);
      below(find(".beside"), k);
    };
    root.addEventListener("input", show);
    let last = 0;
    new ResizeObserver(() => {
      const width = find(".picture").clientWidth;
      if (width !== last) show();
      last = width;
    }).observe(find(".picture"));
    show();
  }

  for (const [quantity, { colour }] of Object.entries(COURSE.styles)) {
    document.documentElement.style.setProperty(`--course-${quantity}`, colour);
  }
  return { axes, build, dot, equation, fixed, pen, segment, sign, table, term, three, write };
})();
