// A number, a name or another short cell is not broken into two lines; a table that is too wide is set closer.
document$.subscribe(() => {
  for (const table of document.querySelectorAll(".md-typeset table:not([class])")) {
    for (const cell of table.querySelectorAll("th, td")) {
      const text = cell.textContent.trim();
      const longest = cell.matches("th") ? 10 : /\d/.test(text) ? 22 : 14;
      if (text.length <= longest) cell.style.whiteSpace = "nowrap";
    }
    const columns = table.rows[0].cells.length;
    if (columns < 3) table.parentElement.classList.add("two-columns");
    const scrolls = table.scrollWidth > table.closest(".md-typeset__scrollwrap").clientWidth;
    if (columns > 8 || scrolls) table.parentElement.classList.add("many-columns");
  }
});
