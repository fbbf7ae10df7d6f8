package io.torrelque.example;

import com.google.gson.FieldNamingPolicy;
import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.Strictness;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.Locale;
import java.util.Map;

/** What is said on standard output: one JSON object a line, always in UTF-8, each written and flushed whole. */
final class Events {
    static final Gson JSON = new GsonBuilder()
            .setFieldNamingPolicy(FieldNamingPolicy.LOWER_CASE_WITH_UNDERSCORES)
            .setStrictness(Strictness.STRICT)
            .serializeNulls()
            .disableHtmlEscaping()
            .create();

    private static final PrintStream OUT =
            new PrintStream(new FileOutputStream(FileDescriptor.out), false, StandardCharsets.UTF_8);

    /** The name of an event is that of its class, and its fields follow in their order. */
    sealed interface Event {}

    record Enqueued(String taskId, String path, boolean deduplicated) implements Event {}

    record Produced(int tasks) implements Event {}

    record Opened(String consumerId) implements Event {}

    record Delivered(String taskId, int dequeueCount) implements Event {}

    record Extended(String taskId) implements Event {}

    record Released(String taskId, int dequeueCount) implements Event {}

    record Refused(String taskId, String reason) implements Event {}

    record Lost(String taskId, int dequeueCount) implements Event {}

    record Reconnecting(String code, String reason, double delay) implements Event {}

    record Consumed(int tasks) implements Event {}

    record State(String taskId, String status, int dequeueCount, JsonElement result) implements Event {}

    record Cancelled() implements Event {}

    record Polled(List<PolledTask> tasks) implements Event {}

    record PolledTask(String taskId, int dequeueCount, long bytes, String sha256) {}

    record Done(String taskId) implements Event {}

    record Error(String code, String reason, Map<String, String> metadata) implements Event {}

    private Events() {}

    static void print(Event event) {
        var line = new JsonObject();
        line.addProperty("event", event.getClass().getSimpleName().toLowerCase(Locale.ROOT));
        JSON.toJsonTree(event).getAsJsonObject().asMap().forEach(line::add);
        synchronized (OUT) {
            OUT.print(JSON.toJson(line) + "\n");
            OUT.flush();
        }
    }
}
