package io.torrelque.example;

import com.google.gson.JsonParseException;
import com.google.protobuf.ByteString;
import io.torrelque.v1.Payload;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.InvalidPathException;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.HexFormat;

/** The work that a task asks for: what a program of your own would replace. */
record Digest(String sha256, long bytes, long lines, String language) {
    private static final int CHUNK = 64 << 10;

    private record Job(String path) {}

    /** Stops between two reads when its thread is interrupted. */
    static Digest of(Payload payload) throws IOException, InterruptedException {
        var path = path(payload);
        if (!Files.isRegularFile(path)) {
            throw new IOException("not a readable file: " + path);
        }
        var sha256 = newSha256();
        long bytes = 0;
        long lines = 0;
        try (var file = Files.newInputStream(path)) {
            var chunk = new byte[CHUNK];
            for (int length; (length = file.read(chunk)) >= 0; bytes += length) {
                if (Thread.interrupted()) {
                    throw new InterruptedException();
                }
                sha256.update(chunk, 0, length);
                for (int i = 0; i < length; i++) {
                    lines += chunk[i] == '\n' ? 1 : 0;
                }
            }
        }
        return new Digest(HexFormat.of().formatHex(sha256.digest()), bytes, lines, "java");
    }

    static String sha256(ByteString data) {
        return HexFormat.of().formatHex(newSha256().digest(data.toByteArray()));
    }

    private static Path path(Payload payload) throws IOException {
        try {
            var job = Events.JSON.fromJson(payload.getData().toStringUtf8(), Job.class);
            if (job != null && job.path() != null) {
                return Path.of(job.path());
            }
        } catch (JsonParseException | InvalidPathException unusable) {
            throw new IOException("the payload is of no use: " + unusable.getMessage(), unusable);
        }
        throw new IOException("the payload names no path");
    }

    private static MessageDigest newSha256() {
        try {
            return MessageDigest.getInstance("SHA-256");
        } catch (NoSuchAlgorithmException everyJdkHasIt) {
            throw new IllegalStateException(everyJdkHasIt);
        }
    }
}
