"""What is wrong with a page as a browser shows it."""

from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

FAULTS = """() => {
    for (const d of document.querySelectorAll("details")) d.open = true;
    const all = selector => [...document.querySelectorAll(selector)], root = document.documentElement, faults = [];
    if (root.scrollWidth > root.clientWidth) faults.push(`scrolls sideways: ${root.scrollWidth} > ${root.clientWidth}`);
    for (const i of all("img")) if (!(i.complete && i.naturalWidth)) faults.push("missing image: " + i.src);
    for (const m of all("math")) {
        if (/[\\\\&$]|undefined/.test(m.textContent)) faults.push("not an equation: " + m.textContent);
        if (!m.getBoundingClientRect().width) faults.push("invisible equation: " + m.textContent);
    }
    for (const e of all("article p, article li, article td"))
        if (/\\$[^$]+\\$/.test(e.textContent)) faults.push("bare TeX: " + e.textContent.slice(0, 80));
    if (!document.title || !all("h1").length) faults.push("no title");
    return faults;
}"""


def faults(tab, path, anchor=""):
    """All that is wrong with a page as it is shown."""
    tab.heard.clear()
    tab.goto(path.as_uri() + anchor)
    return tab.heard + tab.evaluate(FAULTS) + [f"dead link: {url}" for url in dead_links(tab)]


def dead_links(tab):
    for url in set(tab.evaluate("() => [...document.links].map(a => a.href)")):
        file, anchor = urldefrag(url)
        if file.startswith("file:"):
            path = Path(unquote(urlparse(file).path))
            if not path.is_file() or (anchor and f'id="{unquote(anchor)}"' not in path.read_text()):
                yield url
