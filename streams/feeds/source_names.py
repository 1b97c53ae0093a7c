"""What journals call a source: one partition of one of the exchange's topics, told from others by the topic's id."""

from schemas.messages import SourceRange


def source_name(source: SourceRange) -> str:
    """What journals call the source of a range."""
    return name_of(source.topic, source.topic_id, source.partition)


def name_of(topic: str, topic_id: str, partition: int) -> str:
    """``topic:partition:topic id``, as journals name a source."""
    return f"{topic}:{partition}:{topic_id}"
