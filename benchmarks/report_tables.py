"""Tables that are printed while a benchmark runs, and written as Markdown at its end."""

from pathlib import Path


class Report:
    """Collects titled tables; `markdown` is where they go in the end, if anywhere."""

    def __init__(self, markdown=None):
        self.markdown = markdown and Path(markdown)
        self.parts = []

    def note(self, text):
        """Print a line of text."""
        print(text, flush=True)
        self.parts.append(text)

    def table(self, title, heads, rows):
        """Print a table with columns as wide as their entries."""
        rows = [[str(entry) for entry in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
        print(f"\n{title}")
        for row in [heads, *rows]:
            cells = [entry.rjust(width) for entry, width in zip(row, widths, strict=True)]
            print("  ".join([row[0].ljust(widths[0]), *cells[1:]]), flush=True)
        lines = [f"| {' | '.join(row)} |" for row in [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]]
        self.parts.append(f"**{title}**\n\n" + "\n".join(lines))

    def write(self):
        """Write the Markdown file, if one was asked for."""
        if self.markdown:
            self.markdown.write_text("\n\n".join(self.parts) + "\n")
            print(f"written: {self.markdown}")
