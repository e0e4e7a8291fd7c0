// Sets the formulas of a page. The pages hold them as TeX between dollar signs; KaTeX is shipped beside this file.

// A displayed formula that is wider than the page is set smaller, so that nothing of it is cut at the right edge.
function fit() {
  for (const box of document.querySelectorAll(".katex-display")) {
    box.style.fontSize = "";
    const ratio = (box.parentElement.clientWidth - 36) / box.querySelector(".katex-html").scrollWidth;
    if (ratio < 1) box.style.fontSize = `${Math.max(0.55, ratio)}em`;
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
