"""The widgets that the showcase shows, as the JSON of a widget template is."""

from __future__ import annotations

from typing import Any

from chatkit.widgets import DynamicWidgetRoot

COUNT = "showcase.count"
COUNT_QUIETLY = "showcase.count_quietly"
GREET = "showcase.greet"
UNLOCK = "showcase.unlock"
"""The actions that these widgets send."""


def counter(count: int) -> DynamicWidgetRoot:
    """A card that counts: one button answers by a stream, the other one with the card alone."""
    payload = {"count": count + 1}
    return _card(
        {"type": "Title", "value": "A counter"},
        {"type": "Text", "id": "count", "value": f"Counted to {count}"},
        {
            "type": "Row",
            "children": [
                _button("Count", {"type": COUNT, "payload": payload}),
                _button("Count quietly", {"type": COUNT_QUIETLY, "payload": payload, "streaming": False}),
            ],
        },
    )


def form() -> DynamicWidgetRoot:
    """A card with a form; what is filled in comes with the action's payload."""
    options = [{"value": "tea", "label": "Tea"}, {"value": "coffee", "label": "Coffee"}]
    sizes = [{"value": "small", "label": "Small"}, {"value": "large", "label": "Large"}]
    return _card(
        {
            "type": "Form",
            "direction": "col",
            "onSubmitAction": {"type": GREET},
            "children": [
                {"type": "Label", "value": "Your name", "fieldName": "name"},
                {"type": "Input", "name": "name", "placeholder": "Name", "required": True},
                {"type": "Select", "name": "drink", "options": options, "placeholder": "Drink"},
                {
                    "type": "RadioGroup",
                    "name": "size",
                    "options": sizes,
                },
                {"type": "DatePicker", "name": "day", "placeholder": "Day"},
                {"type": "Checkbox", "name": "sugar", "label": "With sugar"},
                {"type": "Textarea", "name": "words", "placeholder": "Anything else?"},
                {"type": "Button", "label": "Send", "submit": True, "style": "primary"},
            ],
        }
    )


def gallery() -> DynamicWidgetRoot:
    """A list that shows the components one below the other."""
    rows: list[dict[str, Any]] = [
        {"type": "Text", "value": "Plain text"},
        {"type": "Caption", "value": "A caption"},
        {"type": "Markdown", "value": "Some **Markdown**"},
        {"type": "Badge", "label": "A badge", "color": "success"},
        {"type": "Row", "children": [{"type": "Icon", "name": "star"}, {"type": "Text", "value": "An icon"}]},
        {"type": "Divider"},
    ]
    items = [{"type": "ListViewItem", "key": str(at), "children": [row]} for at, row in enumerate(rows)]
    return _root({"type": "ListView", "limit": 4, "children": items})


def chart() -> DynamicWidgetRoot:
    """A card with a chart of two series."""
    months = ("Jan", "Feb", "Mar", "Apr")
    data = [{"month": month, "rain": 60 - 9 * at, "sun": 20 + 17 * at} for at, month in enumerate(months)]
    series = [
        {"type": "bar", "dataKey": "rain", "label": "Rain"},
        {"type": "line", "dataKey": "sun", "label": "Sun"},
    ]
    return _card({"type": "Chart", "data": data, "series": series, "xAxis": "month", "showYAxis": True})


def unlock() -> DynamicWidgetRoot:
    """A card with the one thing that can be done on a locked thread."""
    return _card({"type": "Text", "value": "This thread is locked."}, _button("Unlock", {"type": UNLOCK}))


def _card(*children: dict[str, Any]) -> DynamicWidgetRoot:
    return _root({"type": "Card", "children": list(children)})


def _button(label: str, action: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Button", "label": label, "onClickAction": action}


def _root(members: dict[str, Any]) -> DynamicWidgetRoot:
    return DynamicWidgetRoot.model_validate(members)
