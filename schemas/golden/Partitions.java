// Writes partitions.json: java -cp kafka-clients.jar Partitions.java > partitions.json
import org.apache.kafka.common.utils.Utils;
import java.nio.charset.StandardCharsets;
public class Partitions {
  public static void main(String[] a) {
    StringBuilder long_ = new StringBuilder(); for (int i=0;i<300;i++) long_.append((char)('a'+i%26));
    String[] keys = {"", "a", "ab", "abc", "abcd", "abcde", "acct-17", "BTC-PERP", "ETH-PERP", "0x52908400098527886E0F7030069857D2E4169EE7", "konto-\u00e4\u00f6\u00fc", "\u53e3\u5ea7-1", "\ud83d\ude80", "00000000-0000-4000-8000-000000000001", "user@example.com", "instrument:BTC-PERP", long_.toString()};
    int[] counts = {1,2,3,4,7,16,32,64,1024};
    StringBuilder out = new StringBuilder("[\n");
    for (int k=0;k<keys.length;k++) {
      byte[] b = keys[k].getBytes(StandardCharsets.UTF_8);
      int h = Utils.murmur2(b);
      out.append("  {\"key\": \"").append(keys[k]).append("\", \"murmur2\": ").append(h).append(", \"partitions\": {");
      for (int c=0;c<counts.length;c++) out.append(c>0?", ":"").append("\"").append(counts[c]).append("\": ").append(Utils.toPositive(h)%counts[c]);
      out.append("}}").append(k<keys.length-1?",\n":"\n");
    }
    System.out.print(out.append("]\n"));
  }
}
