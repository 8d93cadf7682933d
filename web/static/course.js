// Small things that no theme brings: copying code, and formulas wider than a phone.
const said = (name) => document.querySelector(`meta[name="course:${name}"]`)?.content ?? name;

function addCopyButtons() {
  for (const block of document.querySelectorAll(".bd-article div.highlight")) {
    if (block.closest(".cell_output")) continue;
    const code = block.querySelector("pre");
    const button = document.createElement("button");
    button.className = "copy";
    button.type = "button";
    button.textContent = said("copy");
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(code.innerText.trimEnd() + "\n");
      button.textContent = said("copied");
      setTimeout(() => (button.textContent = said("copy")), 1500);
    });
    block.append(button);
  }
}

// What scrolls inside itself must be within the keyboard's reach, too.
function reachWhatScrolls() {
  for (const formula of document.querySelectorAll("mjx-container:not([display])")) {
    const room = formula.closest("p, li, td, summary, div").clientWidth;
    formula.classList.toggle("wide", room > 0 && formula.firstElementChild.scrollWidth > room);
  }
  const inside = ".bd-article :is(pre, mjx-container, .pst-scrollable-table-container)";
  for (const part of document.querySelectorAll(inside)) {
    if (part.scrollWidth > part.clientWidth + 1) part.tabIndex = 0;
  }
}

// The arrows in the contents are named after what they open.
function nameArrows() {
  for (const arrow of document.querySelectorAll(".bd-links summary")) {
    arrow.ariaLabel = arrow.closest("li").querySelector("a").innerText;
  }
}

document.addEventListener("DOMContentLoaded", () => {
  nameArrows();
  addCopyButtons();
  reachWhatScrolls();
  window.MathJax?.startup?.promise?.then(reachWhatScrolls);
});
window.addEventListener("load", () => window.MathJax?.startup?.promise?.then(reachWhatScrolls));
window.addEventListener("resize", reachWhatScrolls);
document.addEventListener("toggle", reachWhatScrolls, true); // a fold has opened
