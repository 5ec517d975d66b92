// A browser breaks lines after a hyphen. Numbers such as 1e-3 and options such as --out stay on one line.
document$.subscribe(() => {
  const word = /(\d[\d.]*e-\d+|(?<![\w-])--?\w[\w-]*)/;
  const nodes = document.createTreeWalker(document.querySelector(".md-content"), NodeFilter.SHOW_TEXT);
  const found = [];
  while (nodes.nextNode()) if (word.test(nodes.currentNode.data)) found.push(nodes.currentNode);
  for (const node of found) {
    const parts = node.data.split(word).map((text, i) => {
      if (i % 2 === 0) return text;
      const span = document.createElement("span");
      span.style.whiteSpace = "nowrap";
      span.textContent = text;
      return span;
    });
    node.replaceWith(...parts);
  }
});
