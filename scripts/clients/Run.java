import com.fasterxml.jackson.databind.ObjectMapper;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.regex.Pattern;
import org.openapitools.client.ApiClient;
import org.openapitools.client.ApiException;
import org.openapitools.client.api.ChecksApi;
import org.openapitools.client.api.VerificationsApi;
import org.openapitools.client.model.Check;
import org.openapitools.client.model.CheckByPhone;
import org.openapitools.client.model.Problem;
import org.openapitools.client.model.Start;

public class Run {
    static final String PHONE = System.getenv("PHONE");
    // Of the right form, and no phone's.
    static final String UNUSABLE = "+7999000";

    interface Call {
        void run() throws ApiException;
    }

    public static void main(String[] arguments) throws Exception {
        var client = new ApiClient();
        client.updateBaseUri(System.getenv("MESSAGER_URL"));
        var verifications = new VerificationsApi(client);
        var checks = new ChecksApi(client);

        var started = verifications.startVerification(new Start().phone(PHONE), null);
        check(started.getStatus(), "pending");
        var right = code();
        var wrong = right.equals("000000") ? "000001" : "000000";
        var first = checks.checkCode(started.getId(), new Check().code(wrong), null);
        check(Arrays.asList(first.getValid(), first.getStatus(), first.getAttemptsLeft()),
                List.of(false, "pending", 4));
        var second = checks.checkCode(started.getId(), new Check().code(right), null);
        check(Arrays.asList(second.getValid(), second.getStatus(), second.getAttemptsLeft()),
                Arrays.asList(true, "approved", null));
        var byPhone = checks.checkCodeByPhone(new CheckByPhone().phone(PHONE).code(wrong), null);
        check(Arrays.asList(byPhone.getValid(), byPhone.getStatus()), Arrays.asList(false, null));
        var found = verifications.getVerification(started.getId());
        check(found.getStatus(), "approved");
        check(found.getEvents().stream().anyMatch(it -> it.getType().equals("approved")), true);

        var refused =
                problem(() -> verifications.startVerification(new Start().phone(UNUSABLE), null));
        check(List.of(refused.getStatus(), refused.getCode(),
                        refused.getErrors().get(0).getPointer()),
                List.of(422, "invalid", "/phone"));
        var unknown = problem(() -> verifications.getVerification("ver_0"));
        check(List.of(unknown.getStatus(), unknown.getCode()), List.of(404, "not-found"));
    }

    static Problem problem(Call call) throws Exception {
        try {
            call.run();
        } catch (ApiException error) {
            ObjectMapper mapper = ApiClient.createDefaultObjectMapper();
            return mapper.readValue(error.getResponseBody(), Problem.class);
        }
        throw new AssertionError("not refused");
    }

    static String code() throws Exception {
        var line = Pattern.compile("(?m)^SMS to " + PHONE.substring(1) + ": Your code: (\\d+)$");
        for (int tries = 0; tries < 300; tries += 1) {
            var shown = line.matcher(Files.readString(Path.of(System.getenv("MESSAGER_OUT"))));
            if (shown.find()) {
                return shown.group(1);
            }
            Thread.sleep(100);
        }
        throw new AssertionError("no SMS was shown");
    }

    static void check(Object found, Object expected) {
        if (!found.equals(expected)) {
            throw new AssertionError(found + " is not " + expected);
        }
    }
}
