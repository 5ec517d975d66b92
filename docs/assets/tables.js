// A number, a name or another short cell is not broken into two lines; a table of many columns is set closer.
document$.subscribe(() => {
  for (const table of document.querySelectorAll(".md-typeset table:not([class])")) {
    for (const cell of table.querySelectorAll("th, td")) {
      const text = cell.textContent.trim();
      const longest = cell.matches("th") ? 10 : /\d/.test(text) ? 22 : 14;
      if (text.length <= longest) cell.style.whiteSpace = "nowrap";
    }
    const columns = table.rows[0].cells.length;
    if (columns > 8) table.parentElement.classList.add("many-columns");
    if (columns < 3) table.parentElement.classList.add("two-columns");
  }
});
