"""``pleiad new``: the files of a new system, or one file of one's own with a working example.

A system's test fails until its network works.
"""

import keyword
import re
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from core.errors import UserError
from pleiad import registry
from pleiad.trust import check_name


class Kind(NamedTuple):
    """What the templates of a domain are filled with besides the name."""

    dataset: str
    survey_domain: str
    survey_task: str


class Own(NamedTuple):
    """What a user may write in a file of their own, and how the command takes it."""

    keys: str
    """Keys of ``pleiad fit``, with {path} for the module and class."""
    more: str
    """Further keys, as an example."""


OWN = {
    "schedule": Own("--trainer.callbacks={path}", "--trainer.callbacks.0.every=5"),
    "criterion": Own(
        "--transforms=EarlyExit --transforms.criterion={path} --transforms.threshold=validation",
        "--transforms.0.criterion.scale=0.5",
    ),
}
"""What is written into the current folder: ``pleiad/templates/<kind>.py.jinja``."""

KINDS = {
    "time_series": Kind("etth1", "Signal processing and time series", "forecasting, flows"),
}
"""The domains that have templates: ``pleiad/templates/<domain>_*.jinja``."""


def create(domain: str, name: str, root: Path) -> list[Path]:
    """Write network, config and test of a new system, or a file of one's own; all or none.

    Args:
        domain: a domain that has templates, or a kind of :data:`OWN`.
        name: of the module, such as ``my_network``.
        root: the checkout, which holds ``domains/``; for a file of one's own any folder.

    Returns:
        The files written.

    Raises:
        UserError: if the domain or the name will not do, ``root`` is no checkout, or a file exists.
        OSError: if a file cannot be written.
    """
    _check(domain, name, root)
    written: list[Path] = []
    try:
        for relative, text in _files(domain, name).items():
            path = root / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8", newline="\n") as file:
                written.append(path)
                file.write(text)
    except BaseException as error:
        for path in written:
            path.unlink()
        if isinstance(error, FileExistsError):
            raise UserError(
                f"{error.filename}: exists already; choose another name than {name!r}"
            ) from None
        raise
    return written


def next_steps(domain: str, name: str) -> str:
    """Tell what is left to do after :func:`create`, with the entry for the registry."""
    if domain in OWN:
        keys = OWN[domain].keys.format(path=f"{name}.{class_name(name)}")
        return f"""\
Next: change it as you like, and train with it, any experiment:
  pleiad fit EXPERIMENT {keys} --trust {name}
Its own arguments are keys too, such as {OWN[domain].more}"""
    network, config, test = _files(domain, name)
    experiment = config.removeprefix("configs/").removesuffix(".yaml")
    return f"""\
Next:
1. Write forward in {network}; until then this fails:
     python -m pytest {test}
2. Let experiments name the new class:
     python -m pleiad.index
3. Train it:
     pleiad fit {experiment}
4. {_registration(domain, name, experiment)}"""


def entry(domain: str, name: str) -> str:
    """Give the system's entry for the list ``peers`` of ``pleiad/systems.yaml``."""
    numbers = [int(str(peer.id).removeprefix("p")) for peer in registry.peers()]
    return _render("system.yaml", domain, name, id=f"p{max(numbers, default=0) + 1}")


def class_name(name: str) -> str:
    """Turn a module's name into its class's.

    Example:
        >>> class_name("my_network2")
        'MyNetwork2'
    """
    return "".join(part.capitalize() for part in name.split("_"))


def _registration(domain: str, name: str, experiment: str) -> str:
    if any(system.name == name for system in (*registry.systems(), *registry.peers())):
        return (
            f"pleiad/systems.yaml has an entry {name!r} already; set in it\n"
            f"    module: domains.{domain}.networks.{name}\n"
            f"    experiments: [{experiment}]"
        )
    return f"Add to the end of `peers` in pleiad/systems.yaml:\n{entry(domain, name).rstrip()}"


def _check(domain: str, name: str, root: Path) -> None:
    if domain not in KINDS and domain not in OWN:
        known = ", ".join((*KINDS, *OWN))
        raise UserError(f"no templates for the domain {domain!r}; there is {known}")
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise UserError(
            f"the name {name!r} will not do for a module; use lower-case letters, digits and single"
            " underscores, such as my_network"
        )
    if domain in OWN:
        check_name(name, root / f"{name}.py")
    elif not (root / "domains" / domain).is_dir():
        raise UserError(
            f"{root}: not a checkout of the suite (there is no domains/{domain}); go to one"
        )


def _files(domain: str, name: str) -> dict[str, str]:
    """Give the text of each file by its path below the root: network, config, test."""
    if domain in OWN:
        return {f"{name}.py": _render(f"{domain}.py", domain, name)}
    config = f"configs/{domain}/{name}_{KINDS[domain].dataset}.yaml"
    return {
        f"domains/{domain}/networks/{name}.py": _render(f"{domain}_network.py", domain, name),
        config: _render(f"{domain}_config.yaml", domain, name),
        f"tests/domains/{domain}/networks/test_{name}.py": _render(
            f"{domain}_test.py", domain, name
        ),
    }


def _render(template: str, domain: str, name: str, **more: str) -> str:
    environment = Environment(
        loader=PackageLoader("pleiad"), undefined=StrictUndefined, keep_trailing_newline=True
    )
    facts = {"domain": domain, "name": name, "class_name": class_name(name)}
    if domain in KINDS:
        kind = KINDS[domain]
        facts |= {**kind._asdict(), "experiment": f"{name}_{kind.dataset}"}
    return environment.get_template(f"{template}.jinja").render(facts, **more)
