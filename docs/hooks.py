"""What the site has beside the pages of this folder. MkDocs calls these functions."""

import re
from pathlib import Path

from mkdocs.structure.files import File
from typer.cli import get_docs_for_click
from typer.main import get_command

from relu_sparsity import cli
from relu_sparsity.reference import reference

ROOT = Path(__file__).parents[1]
# Pages link to these. They lie outside of docs/, and become part of the site.
SHOWN = (
    "published/*/*.md",
    "published/*/*.svg",
    "published/*/figures/*.svg",
    "published/*/tables/*.md",
    "results/bench/*.md",
    "results/bench/*.svg",
)
_OUTSIDE = re.compile(r"(\]\()\.\./((?:\.\./)*(?:published|results)/)")


def on_files(files, config):
    for path in sorted(path for pattern in SHOWN for path in ROOT.glob(pattern)):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, **_):
    if page.file.src_uri == "reference/params.md":
        markdown += "\n" + "\n".join(reference())
    if page.file.src_uri == "reference/commands.md":
        markdown += "\n" + commands()
    # On GitHub the folder above docs/ is the repository; on the site it is the site itself.
    return _OUTSIDE.sub(r"\1\2", markdown)


def commands():
    command = get_command(cli.app)
    context = command.context_class(command, info_name="relu-sparsity")
    text = get_docs_for_click(obj=command, ctx=context, name="relu-sparsity")
    text = text.removeprefix("# `relu-sparsity`\n\n")
    # The list of commands cuts their texts off, and the page has a table of contents.
    return re.sub(r"\*\*Commands\*\*:\n\n(\* .*\n)+", "", text)
