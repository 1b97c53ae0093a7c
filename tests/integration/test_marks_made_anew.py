"""The topic of the marks is deleted and made anew, with a real broker: the roles end, and the next ones go on."""

from collections.abc import Iterator

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from schemas.topics import CONTRACT, MARKS
from streams.broker.admin import admin_client
from streams.settings import Settings
from tests.integration.conftest import Pipeline, eventually
from tests.integration.test_pipeline import leveraged, one_command

pytestmark = pytest.mark.long


@pytest.fixture
def pipeline(own_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    running = Pipeline(own_settings, tmp_path_factory.mktemp("roles"))
    yield running
    running.close()


def test_a_topic_made_anew_ends_the_engine_and_the_next_one_goes_on(pipeline: Pipeline, own_settings: Settings) -> None:
    market = leveraged(pipeline)
    admin = admin_client(own_settings)
    for role in (pipeline.oracle, pipeline.router):
        role.stop()
    make_anew(admin, MARKS)
    eventually(lambda: pipeline.engine.process.poll() is not None, "the engine ends")
    assert "what is missing and what to do" in pipeline.engine.log()
    for role in (pipeline.oracle, pipeline.router, pipeline.engine):
        role.restart()
    carol = f"carol-{market.alice}"
    market.deposit(carol, "100")
    market.marks.close()
    market.marks = pipeline.reader(MARKS)
    market.price("94")
    market.trade(carol, market.bob, "10", "94")
    market.wait_for_position(carol, "10")
    market.price("80")
    assert one_command(market, carol)["command_id"] == f"{carol}:1"
    assert market.alerts.values(kind="records_gone")[-1]["reason"].startswith(MARKS)


def make_anew(admin: AdminClient, name: str) -> None:
    """Delete a topic and create it again."""
    (topic,) = [topic for topic in CONTRACT if topic.name == name]
    admin.delete_topics([name])[name].result(30)

    def created() -> bool:
        try:
            admin.create_topics([NewTopic(name, num_partitions=1, config=topic.config())])[name].result(30)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # the deletion may still be under way
                raise
            return False
        return True

    eventually(created, f"{name} is there again")
