// Renders the formulas that pymdownx.arithmatex marks, \(...\) in a line and \[...\] on their own.
// `document$` is Material's: it also fires when a page is loaded without a reload.
document$.subscribe(() => {
  for (const element of document.querySelectorAll(".arithmatex")) {
    const text = element.textContent.trim();
    if (!/^\\[([]/.test(text)) continue; // rendered before
    katex.render(text.slice(2, -2), element, { displayMode: text.startsWith("\\["), throwOnError: false });
  }
});
