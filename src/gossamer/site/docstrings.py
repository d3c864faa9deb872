"""Docstrings as Markdown: numpydoc sections become definition lists and code blocks."""

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

SECTIONS = ("Parameters", "Attributes", "Returns", "Yields", "Raises", "Notes", "Examples")
_LISTS = ("Parameters", "Attributes", "Returns", "Yields", "Raises")
_WIDTH = 88  # of a signature, in characters
_CODE = re.compile(r"(`+)(.+?)\1", re.DOTALL)
_ARXIV = re.compile(r"\barXiv (\d{4}\.\d{4,5})\b")


def markdown(docstring: str) -> str:
    """Turn a numpydoc docstring into Markdown.

    Parameters
    ----------
    docstring : str
        As written, indented or not.

    Returns
    -------
    str
        Prose as it is, sections under a bold title, examples as Python code. Arxiv ids are links.

    Examples
    --------
    >>> print(markdown("Halve it.\\n\\nParameters\\n----------\\nx : float\\n    Any."))
    Halve it.
    <BLANKLINE>
    **Parameters**
    <BLANKLINE>
    `x`{ .gs-name } float
    :   Any.
    """
    parts = []
    for title, body in _sections(inspect.cleandoc(docstring)):
        if title == "Examples":
            text = f"```pycon\n{body}\n```" if body.startswith(">>>") else _example(body)
        elif title in _LISTS:
            text = "\n\n".join(_entries(body, named=title in ("Parameters", "Attributes")))
        else:
            text = _prose(body)
        parts += [f"**{title}**", text] if title else [text]
    return "\n\n".join(part for part in parts if part)


def reference(name: str, item: Any, *, level: int = 3) -> str:
    """Document one public object: its signature, its docstring, and a class's own methods.

    Parameters
    ----------
    name : str
        How it is imported.
    item : object
        A class, a function or a constant.
    level : int, default 3
        Of the headings of a class's methods; 0 leaves the methods out.

    Returns
    -------
    str
        Markdown.

    Examples
    --------
    >>> print(reference("gossamer.site.markdown", markdown).splitlines()[1])
    gossamer.site.markdown(docstring)
    """
    parts = [_signature(name, item)] if callable(item) else []
    parts.append(markdown(inspect.getdoc(item) or "") if callable(item) else f"`{item!r}`")
    if inspect.isclass(item) and level:
        for member, value in vars(item).items():
            public = not member.startswith("_") and not inspect.isclass(value)
            function = getattr(value, "__func__", getattr(value, "fget", value))
            if public and inspect.isfunction(function) and function.__doc__:
                parts.append(f"{'#' * level} `{member}` {{ #{name.split('.')[-1]}.{member} }}")
                if not isinstance(value, property):
                    parts.append(_signature(member, function, bound=True))
                parts.append(markdown(function.__doc__))
    return "\n\n".join(part for part in parts if part)


def summary(item: Any) -> str:
    """Return the first line of an object's docstring, or "" if it has none.

    Examples
    --------
    >>> summary(markdown)
    'Turn a numpydoc docstring into Markdown.'
    """
    text = (inspect.getdoc(item) or "") if callable(item) else ""
    return text.partition("\n\n")[0].replace("\n", " ")


def _sections(text: str) -> Iterator[tuple[str, str]]:
    """Split a docstring at its underlined titles; the part before the first has none."""
    titles = "|".join(SECTIONS)
    pieces = re.split(rf"(?m)^({titles})\n-{{3,}}\n", text)
    yield "", pieces[0].strip()
    for title, body in zip(pieces[1::2], pieces[2::2], strict=True):
        yield title, body.strip("\n")


def _entries(body: str, *, named: bool) -> Iterator[str]:
    """Turn "name : type" heads and their indented text into a definition list."""
    for entry in re.split(r"\n(?=\S)", body):
        head, _, text = entry.partition("\n")
        name, colon, kind = head.partition(" : ")
        if named or colon:
            head = f"`{name}`{{ .gs-name }} {_prose(kind)}".strip()
        else:
            head = f"`{head}`"
        text = _prose(textwrap.dedent(text).strip())
        yield f"{head}\n:   {textwrap.indent(text or '&nbsp;', '    ').lstrip()}"


def _example(body: str) -> str:
    """Keep the words of an example and fence its code."""
    pieces = re.split(r"\n\n(?=\S)", body)
    return "\n\n".join(
        f"```pycon\n{piece}\n```" if piece.startswith(">>>") else _prose(piece) for piece in pieces
    )


def _prose(text: str) -> str:
    """Escape what Markdown or HTML would read otherwise, outside of code, and link arXiv ids."""
    pieces, end = [], 0
    for match in _CODE.finditer(text):
        pieces += [_plain(text[end : match.start()]), match[0]]
        end = match.end()
    return "".join([*pieces, _plain(text[end:])])


def _plain(text: str) -> str:
    escaped = re.sub(r"([*_])", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;"))
    escaped = re.sub(r"(?m)^(\s*)([-+]|\d+\.)(?=\S)", r"\1\\\2", escaped)
    return _ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", escaped)


def _signature(name: str, item: Callable[..., Any], *, bound: bool = False) -> str:
    """The call as code, without annotations, a parameter a line where one line is too long."""
    try:
        parameters = list(inspect.signature(item).parameters.values())[bound:]
    except (TypeError, ValueError):  # not every callable tells
        return ""
    words: list[str] = []
    star = False
    for parameter in parameters:
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not star:
            words.append("*")
        star |= parameter.kind in (
            inspect.Parameter.KEYWORD_ONLY,
            inspect.Parameter.VAR_POSITIONAL,
        )
        word = str(parameter.replace(annotation=inspect.Parameter.empty))
        words.append(re.sub(r" at 0x[0-9a-f]+", "", word))  # the same page from every build
    line = f"{name}({', '.join(words)})"
    if len(line) > _WIDTH:
        line = f"{name}(\n    " + ",\n    ".join(words) + ",\n)"
    return f"```python\n{line}\n```"
