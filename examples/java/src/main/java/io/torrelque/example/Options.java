package io.torrelque.example;

import java.math.BigDecimal;
import java.time.Duration;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.Set;

/** What was asked for: a verb, its argument if it has one, and options, which may stand anywhere. */
record Options(Verb verb, String argument, Map<String, String> values) {
    static final String USAGE = """
            usage: produce FOLDER [--limit N] [--batch N]
                   consume [--credit N] [--policy keep|requeue] [--hold SECONDS] [--until N] [--idle SECONDS]
                   watch TASK_ID [--timeout SECONDS] [--states N]
                   poll [--timeout SECONDS] [--deadline SECONDS] [--max N]
                   release TASK_ID [--dequeue-count N] [--result JSON]
            of every verb: [--address HOST:PORT] [--queue NAME] [--ca FILE]""";

    private static final Set<String> COMMON = Set.of("address", "queue", "ca");
    private static final BigDecimal MOST_SECONDS = BigDecimal.valueOf(Duration.ofDays(3650).toSeconds());

    enum Verb {
        PRODUCE("FOLDER", "limit", "batch"),
        CONSUME(null, "credit", "policy", "hold", "until", "idle"),
        WATCH("TASK_ID", "timeout", "states"),
        POLL(null, "timeout", "deadline", "max"),
        RELEASE("TASK_ID", "dequeue-count", "result");

        private final String argument;
        private final Set<String> options;

        Verb(String argument, String... options) {
            this.argument = argument;
            this.options = Set.of(options);
        }

        static Verb of(String name) throws UsageException {
            return Arrays.stream(values())
                    .filter(verb -> verb.name().toLowerCase(Locale.ROOT).equals(name))
                    .findFirst()
                    .orElseThrow(() -> new UsageException("no such verb: " + name));
        }
    }

    static Options parse(String... arguments) throws UsageException {
        var words = new ArrayList<String>();
        var values = new HashMap<String, String>();
        var rest = new ArrayDeque<>(List.of(arguments));
        while (!rest.isEmpty()) {
            var word = rest.pop();
            if (word.equals("--")) {
                words.addAll(rest);
                break;
            }
            if (!word.startsWith("-")) {
                words.add(word);
                continue;
            }
            var pair = word.split("=", 2);
            var name = word.startsWith("--") ? pair[0].substring(2) : pair[0];
            if (pair.length == 1 && rest.isEmpty()) {
                throw new UsageException(word + " needs a value");
            }
            values.put(name, pair.length == 2 ? pair[1] : rest.pop());
        }
        if (words.isEmpty()) {
            throw new UsageException("no verb is given");
        }
        return checked(Verb.of(words.get(0)), words.subList(1, words.size()), values);
    }

    private static Options checked(Verb verb, List<String> words, Map<String, String> values) throws UsageException {
        for (var name : values.keySet()) {
            if (!COMMON.contains(name) && !verb.options.contains(name)) {
                throw new UsageException("no such option of this verb: " + name);
            }
        }
        if (words.size() != (verb.argument == null ? 0 : 1)) {
            throw new UsageException("expected " + (verb.argument == null ? "no argument" : "one " + verb.argument));
        }
        return new Options(verb, verb.argument == null ? null : words.get(0), values);
    }

    Optional<String> text(String name) {
        return Optional.ofNullable(values.get(name));
    }

    /** An option that may also be given by the environment. */
    Optional<String> text(String name, String variable) {
        return text(name).or(() -> Optional.ofNullable(System.getenv(variable)).filter(value -> !value.isEmpty()));
    }

    Optional<Integer> number(String name, int least, int most) throws UsageException {
        var text = values.get(name);
        if (text == null) {
            return Optional.empty();
        }
        try {
            var number = Integer.parseInt(text);
            if (number >= least && number <= most) {
                return Optional.of(number);
            }
        } catch (NumberFormatException notANumber) {
            // Said below.
        }
        throw new UsageException("--%s: %s is no whole number from %d to %d".formatted(name, text, least, most));
    }

    Optional<Duration> seconds(String name) throws UsageException {
        var text = values.get(name);
        if (text == null) {
            return Optional.empty();
        }
        try {
            var seconds = new BigDecimal(text);
            if (seconds.signum() >= 0 && seconds.compareTo(MOST_SECONDS) <= 0) {
                return Optional.of(Duration.ofNanos(seconds.movePointRight(9).longValue()));
            }
        } catch (NumberFormatException notANumber) {
            // Said below.
        }
        throw new UsageException("--%s: %s is no number of seconds".formatted(name, text));
    }
}
