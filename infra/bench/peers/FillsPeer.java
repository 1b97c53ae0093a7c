import com.fasterxml.jackson.annotation.JsonFormat;
import com.fasterxml.jackson.annotation.JsonIgnoreProperties;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.math.BigDecimal;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.TreeMap;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.KeyValue;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Repartitioned;
import org.apache.kafka.streams.processor.StateRestoreListener;
import org.apache.kafka.streams.state.KeyValueStore;

/** Trades into positions by account with Kafka Streams' DSL, exactly once. Its settings are in the environment. */
public final class FillsPeer {
    private static final ObjectMapper JSON = new ObjectMapper();

    @JsonIgnoreProperties(ignoreUnknown = true)
    public static final class Side {
        public String account;
        public BigDecimal fee;
    }

    @JsonIgnoreProperties(ignoreUnknown = true)
    public static final class Trade {
        public String symbol;
        public BigDecimal price;
        public BigDecimal quantity;
        public String aggressor_side;
        public Side maker;
        public Side taker;

        List<KeyValue<String, Fill>> fills() {
            boolean bought = aggressor_side.equals("buy");
            return List.of(fill(taker, bought), fill(maker, !bought));
        }

        private KeyValue<String, Fill> fill(Side side, boolean bought) {
            Fill fill = new Fill();
            fill.symbol = symbol;
            fill.quantity = bought ? quantity : quantity.negate();
            fill.price = price;
            fill.fee = side.fee;
            return KeyValue.pair(side.account, fill);
        }
    }

    public static final class Fill {
        public String symbol;
        @JsonFormat(shape = JsonFormat.Shape.STRING) public BigDecimal quantity;
        @JsonFormat(shape = JsonFormat.Shape.STRING) public BigDecimal price;
        @JsonFormat(shape = JsonFormat.Shape.STRING) public BigDecimal fee;
    }

    public static final class Position {
        @JsonFormat(shape = JsonFormat.Shape.STRING) public BigDecimal quantity = BigDecimal.ZERO;
        @JsonFormat(shape = JsonFormat.Shape.STRING) public BigDecimal cash = BigDecimal.ZERO;
    }

    public static final class Account {
        public long fills;
        @JsonFormat(shape = JsonFormat.Shape.STRING) public BigDecimal fees = BigDecimal.ZERO;
        public Map<String, Position> positions = new TreeMap<>();

        Account apply(Fill fill) {
            Position position = positions.computeIfAbsent(fill.symbol, symbol -> new Position());
            position.quantity = position.quantity.add(fill.quantity);
            position.cash = position.cash.subtract(fill.quantity.multiply(fill.price));
            fees = fees.add(fill.fee);
            fills++;
            return this;
        }
    }

    private static <T> Serde<T> json(Class<T> type) {
        return Serdes.serdeFrom((topic, value) -> {
            try {
                return value == null ? null : JSON.writeValueAsBytes(value);
            } catch (IOException error) {
                throw new UncheckedIOException(error);
            }
        }, (topic, bytes) -> {
            try {
                return bytes == null ? null : JSON.readValue(bytes, type);
            } catch (IOException error) {
                throw new UncheckedIOException(error);
            }
        });
    }

    /** Says on standard output when a store begins and ends to be restored, in milliseconds, and of how many records. */
    private static final class RestoreTimes implements StateRestoreListener {
        @Override
        public void onRestoreStart(TopicPartition place, String store, long first, long end) {
            System.out.println("restoring " + store + " 0 " + System.currentTimeMillis());
        }

        @Override
        public void onBatchRestored(TopicPartition place, String store, long last, long records) {}

        @Override
        public void onRestoreEnd(TopicPartition place, String store, long records) {
            System.out.println("restored " + store + " " + records + " " + System.currentTimeMillis());
        }
    }

    public static void main(String[] arguments) {
        Map<String, String> given = System.getenv();
        Properties settings = new Properties();
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, given.get("PEER_GROUP"));
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, given.get("PEER_BOOTSTRAP"));
        settings.put(StreamsConfig.STATE_DIR_CONFIG, given.get("PEER_FOLDER"));
        settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, given.get("PEER_WORKERS"));
        if (given.containsKey("PEER_COMMIT_MS")) {
            settings.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, given.get("PEER_COMMIT_MS"));
        }
        // Only so that the broker's time of a state can be read; Streams' own topics carry their sender's time.
        settings.put(StreamsConfig.topicPrefix("message.timestamp.type"), "LogAppendTime");
        int partitions = Integer.parseInt(given.get("PEER_PARTITIONS"));

        StreamsBuilder builder = new StreamsBuilder();
        builder.stream(given.get("PEER_TRADES"), Consumed.with(Serdes.String(), json(Trade.class)))
            .flatMap((symbol, trade) -> trade.fills())
            .repartition(Repartitioned.<String, Fill>as("fills")
                .withKeySerde(Serdes.String())
                .withValueSerde(json(Fill.class))
                .withNumberOfPartitions(partitions))
            .groupByKey()
            .aggregate(
                Account::new,
                (account, fill, state) -> state.apply(fill),
                Materialized.<String, Account, KeyValueStore<Bytes, byte[]>>as("positions")
                    .withKeySerde(Serdes.String())
                    .withValueSerde(json(Account.class)));

        KafkaStreams streams = new KafkaStreams(builder.build(), settings);
        streams.setUncaughtExceptionHandler(error -> {
            error.printStackTrace();
            return StreamThreadExceptionResponse.SHUTDOWN_APPLICATION;
        });
        streams.setGlobalStateRestoreListener(new RestoreTimes());
        Runtime.getRuntime().addShutdownHook(new Thread(streams::close));
        streams.start();
    }
}
