"""Build the package from `settings.ini`, the one place where name, version and requirements stand."""

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

EXPERIMENTS = Path("nbs", "experiments")


class BuildWithExperiments(build_py):
    """Takes the experiments along into `mongars/experiments`; an editable install finds them where they are."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for notebook in sorted(EXPERIMENTS.glob("*.ipynb")):
            target = Path(self.build_lib, "mongars", "experiments", notebook.name)
            self.mkpath(str(target.parent))
            self.copy_file(str(notebook), str(target))


parser = ConfigParser(delimiters=["="])
parser.read(Path(__file__).with_name("settings.ini"), encoding="utf-8")
config = parser["DEFAULT"]


def words(name: str) -> list[str]:
    return config.get(name, "").split()


extras = {
    match[1]: words(match[0])
    for match in (re.fullmatch(r"(\w+)_requirements", name) for name in config)
    if match
}
package, _, patterns = config["package_data"].partition("=")

setup(
    name=config["lib_name"],
    version=config["version"],
    description=config["description"],
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=config["author"],
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=config["keywords"].split(),
    python_requires=f">={config['min_python']}",
    packages=find_packages(include=["mongars", "mongars.*"]),
    package_data={package: patterns.split(",")},
    include_package_data=False,
    install_requires=words("requirements"),
    extras_require=extras,
    entry_points={"console_scripts": words("console_scripts")},
    cmdclass={"build_py": BuildWithExperiments},
    zip_safe=False,
)
