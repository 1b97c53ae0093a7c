// Writes partitions.json with Kafka's own client (made with kafka-clients 4.1.0). Java 17 or later, and a folder with the
// jars of org.apache.kafka:kafka-clients and org.slf4j:slf4j-api, such as the `libs` of a Kafka distribution:
//   java -Dfile.encoding=UTF-8 -cp 'libs/*' schemas/golden/Partitions.java > schemas/golden/partitions.json

import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.apache.kafka.common.utils.Utils;

public class Partitions {
    static final int[] COUNTS = {1, 2, 3, 4, 7, 16, 32, 64, 1024};

    static final List<String> KEYS = List.of(
        "", "a", "ab", "abc", "abcd", "abcde", "acct-17", "acct-9", "BTC-PERP", "ETH-PERP",
        "0x52908400098527886E0F7030069857D2E4169EE7", "00000000-0000-4000-8000-000000000001", "user@example.com",
        "instrument:BTC-PERP", "~!~", " ", "\u0000", "konto-\u00e4\u00f6\u00fc", "\u53e3\u5ea7-1", "\ud83d\ude80",
        "\u00ff\u00fe\u00fd", letters(127), letters(128), letters(300), letters(5000));

    static String letters(int count) {
        return IntStream.range(0, count).mapToObj(i -> String.valueOf((char) ('a' + i % 26))).collect(Collectors.joining());
    }

    static String line(String key) {
        int hash = Utils.murmur2(key.getBytes(StandardCharsets.UTF_8));
        String partitions = IntStream.of(COUNTS)
            .mapToObj(count -> "\"" + count + "\": " + Utils.toPositive(hash) % count)
            .collect(Collectors.joining(", "));
        String quoted = key.replace("\u0000", "\\u0000");
        return "  {\"key\": \"" + quoted + "\", \"murmur2\": " + hash + ", \"partitions\": {" + partitions + "}}";
    }

    public static void main(String[] arguments) {
        byte[] text = ("[\n" + KEYS.stream().map(Partitions::line).collect(Collectors.joining(",\n")) + "\n]\n")
            .getBytes(StandardCharsets.UTF_8);
        System.out.write(text, 0, text.length);
        System.out.flush();
    }
}
