// Sets the formulas of a page, and fits formulas, printed lines and tables to a narrow screen. The pages hold formulas as
// TeX between dollar signs; KaTeX is shipped beside this file.

// A displayed formula that is wider than the page is set smaller, so that nothing of it is cut at the right edge.
function fit() {
  for (const box of document.querySelectorAll(".katex-display")) {
    box.style.fontSize = "";
    const ratio = (box.parentElement.clientWidth - 36) / box.querySelector(".katex-html").scrollWidth;
    if (ratio < 1) box.style.fontSize = `${Math.max(0.55, ratio)}em`;
  }
  // What a program prints is often a table: on a narrow screen it is set smaller before its lines are broken.
  for (const code of document.querySelectorAll(".language-text code, .language-console code")) {
    code.style.fontSize = code.style.whiteSpace = "";
    if (getComputedStyle(code).whiteSpace === "pre") continue; // a wide screen
    code.style.whiteSpace = "pre";
    const ratio = code.clientWidth / code.scrollWidth;
    if (ratio < 0.55) code.style.whiteSpace = "";
    else if (ratio < 1) code.style.fontSize = `${ratio * parseFloat(getComputedStyle(code).fontSize) - 0.05}px`;
  }
  // A wide table is set smaller, and then its words are broken too.
  for (const wrap of document.querySelectorAll(".md-typeset__scrollwrap")) {
    const table = wrap.querySelector("table");
    wrap.classList.remove("narrow");
    table.style.fontSize = "";
    const ratio = wrap.clientWidth / wrap.scrollWidth;
    if (ratio < 1) table.style.fontSize = `${Math.max(0.75, 0.97 * ratio) * parseFloat(getComputedStyle(table).fontSize)}px`;
    if (wrap.scrollWidth > wrap.clientWidth) wrap.classList.add("narrow");
  }
}

document.addEventListener("DOMContentLoaded", () => {
  for (const element of document.querySelectorAll(".arithmatex")) {
    const text = element.textContent.trim();
    const formula = text.slice(2, -2); // without \( and \), or \[ and \]
    katex.render(formula, element, { displayMode: text.startsWith("\\["), throwOnError: false });
  }
  fit();
  document.fonts.ready.then(fit);
  window.addEventListener("resize", fit);
});
