"""What must hold on a page of the web edition that a real browser has opened."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

WIDTHS = {"wide": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
RULES = {"heading-order"}  # asked for beside all that axe calls serious
CODE = "div.highlight pre"  # thousands of words in the same few colours: looked at on one page
OPTIONS = {"resultTypes": ["violations"], "preload": False}
CONTRAST = {"runOnly": ["color-contrast"]}
NO_CONTRAST = {"rules": {"color-contrast": {"enabled": False}}}

# Everything folded is opened, and formulas are set; then what is wrong is said, a line for each.
READY = """async () => {
  document.querySelectorAll('details').forEach((part) => { part.open = true; });
  await window.MathJax?.startup?.promise;
  await Promise.all([...document.images].map((image) => image.decode().catch(() => 0)));
}"""
TEXT = r"""() => {
  const said = [], skip = 'pre, code, script, style, noscript, mjx-container, .headerlink';
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const text = walk.currentNode.data.trim();
    if (/\$|\\[a-zA-Z()\[\]]/.test(text) && !walk.currentNode.parentElement.closest(skip))
      said.push(`raw formula: ${text.slice(0, 60)}`);
  }
  for (const math of document.querySelectorAll('.math:not(:has(mjx-container)), mjx-merror'))
    said.push(`formula not set: ${math.textContent.slice(0, 60)}`);
  for (const image of document.images) {
    if (!image.alt || /\.(png|svg)/.test(image.alt)) said.push(`no alternative text: ${image.src}`);
    if (!image.naturalWidth) said.push(`no image: ${image.src}`);
  }
  return said;
}"""
# What takes long to look through, and shows what other pages show: a formula is a hundred boxes in
# the colour of the text around it, a line of code a dozen words.
THINNED = f"""() => {{
  document.querySelectorAll('mjx-container').forEach((formula) => formula.remove());
  document.querySelectorAll('{CODE}').forEach((code) => {{ code.textContent = code.textContent; }});
}}"""
FITS = """(wide) => {
  const root = document.documentElement, said = [];
  if (root.scrollWidth > root.clientWidth) {
    said.push(`the page scrolls sideways, ${root.scrollWidth} in ${root.clientWidth}`);
    for (const part of document.querySelectorAll('.bd-article *'))
      if (part.getBoundingClientRect().right > root.clientWidth + 1 && said.length < 4)
        said.push(`  reaches out: ${part.tagName} ${part.textContent.slice(0, 40)}`);
  }
  if (wide) for (const block of document.querySelectorAll('div.cell pre')) {
    const longest = Math.max(...block.innerText.split('\\n').map((line) => line.length));
    if (longest <= 90 && block.scrollWidth > block.clientWidth)
      said.push(`${longest} characters do not fit: ${block.innerText.slice(0, 60)}`);
  }
  return said;
}"""


def chromium() -> str | None:
    """Where the distribution has its browser, or None."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


@contextmanager
def opened(address: str) -> Iterator:
    """A page of a new browser that notes, in `page.noted`, what it could not do in silence."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport=WIDTHS["wide"])
        page.noted = []
        page.on("console", lambda said: said.type == "error" and page.noted.append(said.text))
        page.on("pageerror", lambda error: page.noted.append(str(error)))
        host = urlsplit(address).netloc
        page.on("request", lambda asked: _at_home(asked.url, host, page.noted))
        page.on("response", lambda got: got.status >= 400 and page.noted.append(got.url))
        yield page
        browser.close()


def _at_home(url: str, host: str, noted: list[str]) -> None:
    where = urlsplit(url)
    if where.scheme.startswith("http") and where.netloc != host:
        noted.append(f"asks the network for {url}")


def faults(page, url: str, contrast: bool) -> list[str]:
    """Opens a page once and looks at it in both widths and both themes; at contrast if told."""
    page.noted.clear()
    page.set_viewport_size(WIDTHS["wide"])
    page.goto(url)
    page.evaluate(READY)
    found = page.evaluate(TEXT)
    for width, theme in (("wide", "dark"), ("phone", "light")):
        turn(page, theme)
        page.set_viewport_size(WIDTHS[width])
        found += [f"{width}, {theme}: {fault}" for fault in page.evaluate(FITS, width == "wide")]
    page.evaluate(THINNED)
    found += accessibility(page, {} if contrast else NO_CONTRAST, spared=(CODE,))
    turn(page, "dark")
    if contrast:
        found += accessibility(page, CONTRAST, spared=(CODE,))
    return found + page.noted


def turn(page, theme: str) -> None:
    """Turns the page to a theme, at once."""
    page.add_style_tag(content="* { transition: none !important }")  # no colour half-way
    page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")


def accessibility(page, rules: dict, spared: tuple = ()) -> list[str]:
    """What axe-core finds serious, each with the first element that shows it."""
    from axe_playwright_python.sync_playwright import Axe

    context = {"exclude": [[part] for part in spared]}
    theme = page.evaluate("document.documentElement.dataset.theme")
    return [
        f"{theme}: {broken['id']}: {broken['help']}: {broken['nodes'][0]['html'][:160]}"
        for broken in Axe().run(page, context, OPTIONS | rules).response["violations"]
        if broken["impact"] in ("serious", "critical") or broken["id"] in RULES
    ]
