"""Names that clients use for Models and aliases, and who may point at a Model from another namespace."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from moorage.api.common import Extension, ObjectName, Rule, SpecPart
from moorage.api.corev1 import Labels

_SERVED_NAME = "^[A-Za-z0-9]([A-Za-z0-9._:/@+-]*[A-Za-z0-9])?$"

ServedName = Annotated[
    str,
    Field(min_length=1, max_length=128),
    Rule(
        f"self.matches('{_SERVED_NAME}')",
        "a served name has only letters, digits and . _ : / @ + -, and begins and ends with a letter or digit, such as "
        "llama3:instruct",
    ),
]

ServedNames = Annotated[list[ServedName], Field(max_length=16), Extension("x-kubernetes-list-type", "set")]

Namespace = Annotated[
    str,
    Field(min_length=1, max_length=63),
    Rule(
        "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
        "a namespace has only lower-case letters, digits and '-', and begins and ends with a letter or digit",
    ),
]


class ModelRef(SpecPart):
    """A Model, of this namespace unless another is named."""

    name: ObjectName = Field(description="Name of the Model.")
    namespace: Namespace | None = Field(
        default=None,
        description="Namespace of the Model, whose spec.allowedNamespaces must permit it. Absent: the alias' own.",
    )


class NamespacesFrom(StrEnum):
    """Whose aliases may point at a Model."""

    SAME = "Same"
    ALL = "All"
    SELECTOR = "Selector"


class SelectorOperator(StrEnum):
    """How a requirement compares, as in metav1.LabelSelectorRequirement."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


LabelKey = Annotated[str, Field(min_length=1, max_length=317)]
LabelValue = Annotated[str, Field(max_length=63)]


class LabelRequirement(SpecPart):
    """One requirement on labels, as in metav1."""

    rules: ClassVar = (
        Rule(
            "self.operator in ['In', 'NotIn'] ? has(self.values) && self.values.size() > 0 : !has(self.values)",
            "values are needed for the operators In and NotIn, and must be absent for Exists and DoesNotExist",
        ),
    )

    key: LabelKey = Field(description="Label to look at.")
    operator: SelectorOperator = Field(description="How to compare.")
    values: Annotated[list[LabelValue], Field(max_length=32)] = Field(default=[], description="Values to compare with.")

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether `labels` fulfil it; a label that is not there fulfils NotIn, as everywhere in Kubernetes."""
        match self.operator:
            case SelectorOperator.IN:
                return labels.get(self.key) in self.values
            case SelectorOperator.NOT_IN:
                return labels.get(self.key) not in self.values
            case SelectorOperator.EXISTS:
                return self.key in labels
            case SelectorOperator.DOES_NOT_EXIST:
                return self.key not in labels


class LabelSelector(SpecPart):
    """Labels to select by, as in metav1; an empty one selects everything."""

    match_labels: Labels = Field(default={}, description="Labels that must be there with these values.")
    match_expressions: Annotated[list[LabelRequirement], Field(max_length=16)] = Field(
        default=[], description="Requirements, all of which must hold."
    )

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether something with `labels` is selected."""
        wanted = self.match_labels.items()
        return all(labels.get(k) == v for k, v in wanted) and all(r.matches(labels) for r in self.match_expressions)


class AllowedNamespaces(SpecPart):
    """Whose aliases may point at a Model, as Gateway API's allowedRoutes."""

    rules: ClassVar = (
        Rule(
            "(self.from == 'Selector') == has(self.selector)",
            "spec.allowedNamespaces.selector goes with from: Selector, and only with it",
        ),
    )

    from_: NamespacesFrom = Field(
        default=NamespacesFrom.SAME,
        alias="from",
        description="Same: aliases of the Model's own namespace. All: of every namespace. Selector: of its own and of "
        "those that selector selects by their labels.",
    )
    selector: LabelSelector | None = Field(default=None, description="Labels of the namespaces, with from: Selector.")

    def permits(self, own: str, other: str, labels: Mapping[str, str] | None) -> bool:
        """Whether an alias of namespace `other`, with these `labels`, may point at a Model of namespace `own`.

        `labels` is None where nobody knows such a namespace: nothing is selected then.
        """
        if other == own or self.from_ == NamespacesFrom.ALL:
            return True
        return self.selector is not None and labels is not None and self.selector.matches(labels)
