/* vibration-watch: watches a recorded ground-vibration signal for events.
 *
 * Reads one waveform in GSE2 format with CM6 compression, checks its checksum, looks at all of it once, and then
 * replays it for ever, a window each second, the way it would come from a sensor. Lines that begin with "@metric"
 * become counters of the workload; everything else is its log.
 *
 * Environment: SIGNAL (file), VERSION (printed), REPLAY_HZ (samples per second of real time, 0 = end after the first
 * look), STA_LTA_ON and STA_LTA_OFF (thresholds of the detector). The first argument overrides REPLAY_HZ.
 */
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    MAX_SAMPLES = 1 << 20, /* a little over 87 minutes at 200 Hz */
    MAX_LINE = 128,        /* GSE2 lines have at most 80 characters */
    CHECKSUM_MODULO = 100000000,
};

/* Short- and long-term average of the detector, in seconds: the length of an event and that of the calm before it. */
static const double STA_SECONDS = 0.5;
static const double LTA_SECONDS = 10.0;
/* The dominant frequency is looked for up to here, in hertz. */
static const double DOMINANT_MAX_HZ = 60.0;
/* A line in the log for every so many windows, so that a calm day costs little flash. */
static const long WINDOWS_PER_LINE = 300;

struct signal {
    int32_t *raw;      /* counts, as recorded */
    double *samples;   /* counts without their mean */
    size_t count;
    double rate_hz;
    char station[6];
    char channel[4];
    char start[24];
};

struct detector {
    double sta, lta;               /* averages of the squared samples */
    double sta_weight, lta_weight; /* of the newest sample in each */
    double on, off;                /* thresholds of sta / lta */
    size_t settle, seen;           /* samples until the long average means something, and since the start */
    bool active;
    double on_at, peak, energy;    /* of the event that goes on */
    size_t length;
};

struct totals {
    long events, windows, passes;
};

static void fail(const char *what, const char *why)
{
    fprintf(stderr, "error: %s: %s\n", what, why);
    exit(1);
}

/* A number from the environment. What is set but is no number is an error, not the default. */
static double number_from(const char *name, const char *text, double otherwise, double low, double high)
{
    if (text == NULL || *text == '\0')
        return otherwise;
    char *end;
    double value = strtod(text, &end);
    if (*end != '\0' || !(value >= low && value <= high)) {
        fprintf(stderr, "error: %s=%s: expected a number from %g to %g\n", name, text, low, high);
        exit(1);
    }
    return value;
}

/* ---- GSE2 ------------------------------------------------------------------------------------------------------ */

/* Copies columns of a fixed-width line, without the blanks around them. */
static void field(char *to, size_t size, const char *line, size_t from, size_t width)
{
    size_t length = strlen(line);
    size_t end = from + width < length ? from + width : length;
    while (from < end && line[from] == ' ')
        from++;
    while (end > from && (line[end - 1] == ' ' || line[end - 1] == '\n' || line[end - 1] == '\r'))
        end--;
    size_t count = end > from ? end - from : 0;
    if (count >= size)
        count = size - 1;
    memcpy(to, line + from, count);
    to[count] = '\0';
}

/* The line "WID2": which instrument, when, how many samples how fast. */
static void read_header(struct signal *signal, const char *line)
{
    char text[24];
    field(signal->start, sizeof signal->start, line, 5, 23);
    field(signal->station, sizeof signal->station, line, 29, 5);
    field(signal->channel, sizeof signal->channel, line, 35, 3);
    field(text, sizeof text, line, 44, 3);
    if (strcmp(text, "CM6") != 0)
        fail("WID2", "only the compression CM6 is understood");
    field(text, sizeof text, line, 48, 8);
    long count = strtol(text, NULL, 10);
    if (count < 2 || count > MAX_SAMPLES)
        fail("WID2", "the number of samples is not sensible");
    field(text, sizeof text, line, 57, 11);
    signal->rate_hz = strtod(text, NULL);
    if (!(signal->rate_hz >= 1.0 && signal->rate_hz <= 10000.0))
        fail("WID2", "the sampling rate is not sensible");
    signal->count = (size_t)count;
}

/* CM6 writes six bits per character, in this order: + - 0..9 A..Z a..z. */
static int six_bits(char symbol)
{
    static const char ALPHABET[] = "+-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    const char *at = symbol == '\0' ? NULL : strchr(ALPHABET, symbol);
    return at == NULL ? -1 : (int)(at - ALPHABET);
}

struct cm6 {
    uint32_t magnitude;
    bool negative, inside; /* inside: the number goes on with the next character */
    size_t done;
};

/* Takes one line of data. The first character of a number holds: goes on (1 bit), sign (1), value (4); each further
 * one: goes on (1), value (5). */
static void decode_line(struct cm6 *cm6, struct signal *signal, const char *line)
{
    for (; *line != '\0' && *line != '\n' && *line != '\r'; line++) {
        if (*line == ' ')
            continue;
        int bits = six_bits(*line);
        if (bits < 0)
            fail("DAT2", "a character that CM6 does not have");
        if (cm6->inside) {
            cm6->magnitude = cm6->magnitude << 5 | (uint32_t)(bits & 31);
        } else {
            cm6->negative = (bits & 16) != 0;
            cm6->magnitude = (uint32_t)(bits & 15);
        }
        cm6->inside = (bits & 32) != 0;
        if (cm6->inside)
            continue;
        if (cm6->done == signal->count)
            fail("DAT2", "more samples than WID2 says");
        int32_t value = (int32_t)cm6->magnitude;
        signal->raw[cm6->done++] = cm6->negative ? -value : value;
    }
}

/* The data are second differences; summing up twice gives the samples. Sums wrap as in the reference decoder. */
static void integrate(int32_t *raw, size_t count)
{
    for (int times = 0; times < 2; times++)
        for (size_t at = 1; at < count; at++)
            raw[at] = (int32_t)((uint32_t)raw[at] + (uint32_t)raw[at - 1]);
}

static long checksum_of(const int32_t *raw, size_t count)
{
    long sum = 0;
    for (size_t at = 0; at < count; at++)
        sum = (sum + raw[at] % CHECKSUM_MODULO) % CHECKSUM_MODULO;
    return labs(sum);
}

static void finish_signal(struct signal *signal, const struct cm6 *cm6, long expected)
{
    if (cm6->done != signal->count) {
        fprintf(stderr, "error: DAT2: %zu samples, WID2 says %zu: the file is cut short\n", cm6->done, signal->count);
        exit(1);
    }
    integrate(signal->raw, signal->count);
    long found = checksum_of(signal->raw, signal->count);
    if (found != expected) {
        fprintf(stderr, "error: CHK2: the data sum up to %ld, the file says %ld: the signal is damaged\n", found,
                expected);
        exit(1);
    }
    double mean = 0;
    for (size_t at = 0; at < signal->count; at++)
        mean += signal->raw[at];
    mean /= (double)signal->count;
    for (size_t at = 0; at < signal->count; at++)
        signal->samples[at] = signal->raw[at] - mean;
    printf("signal station=%s channel=%s start=%s samples=%zu rate=%gHz mean=%.1f checksum=%ld ok\n", signal->station,
           signal->channel, signal->start, signal->count, signal->rate_hz, mean, found);
}

static struct signal read_signal(const char *path)
{
    struct signal signal = {0};
    struct cm6 cm6 = {0};
    char line[MAX_LINE];
    bool in_data = false;
    FILE *file = fopen(path, "r");
    if (file == NULL)
        fail(path, strerror(errno));
    while (fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, "WID2 ", 5) == 0) {
            read_header(&signal, line);
            signal.raw = calloc(signal.count, sizeof *signal.raw);
            signal.samples = calloc(signal.count, sizeof *signal.samples);
            if (signal.raw == NULL || signal.samples == NULL)
                fail(path, "no memory for the samples");
        } else if (strncmp(line, "DAT2", 4) == 0) {
            in_data = signal.raw != NULL;
        } else if (strncmp(line, "CHK2 ", 5) == 0 && in_data) {
            fclose(file);
            finish_signal(&signal, &cm6, strtol(line + 5, NULL, 10));
            return signal;
        } else if (in_data) {
            decode_line(&cm6, &signal, line);
        }
    }
    fail(path, "no whole waveform (WID2, DAT2, CHK2) in it");
    return signal;
}

/* ---- Analysis -------------------------------------------------------------------------------------------------- */

static struct detector new_detector(double rate_hz, double on, double off)
{
    return (struct detector){
        .sta_weight = 1.0 / (STA_SECONDS * rate_hz),
        .lta_weight = 1.0 / (LTA_SECONDS * rate_hz),
        .lta = 1e-99,
        .on = on,
        .off = off,
        .settle = (size_t)(LTA_SECONDS * rate_hz),
    };
}

/* Recursive STA/LTA: an event lasts from the ratio's rise above `on` to its fall below `off`. True at its end. */
static bool detect(struct detector *detector, double sample, double at_seconds)
{
    double energy = sample * sample;
    detector->sta += detector->sta_weight * (energy - detector->sta);
    detector->lta += detector->lta_weight * (energy - detector->lta);
    if (++detector->seen < detector->settle)
        return false;
    double ratio = detector->sta / detector->lta;
    if (!detector->active) {
        if (ratio < detector->on)
            return false;
        detector->active = true;
        detector->on_at = at_seconds;
        detector->peak = ratio;
        detector->energy = 0;
        detector->length = 0;
    }
    detector->energy += energy;
    detector->length++;
    if (ratio > detector->peak)
        detector->peak = ratio;
    if (ratio > detector->off)
        return false;
    detector->active = false;
    return true;
}

static void report_event(const struct detector *detector, double off_at, struct totals *totals)
{
    double rms = sqrt(detector->energy / (double)detector->length);
    totals->events++;
    printf("event on=%.3fs off=%.3fs peak_ratio=%.2f rms=%.1f\n", detector->on_at, off_at, detector->peak, rms);
    printf("@metric events %ld\n@metric last_event_peak_ratio %.3f\n", totals->events, detector->peak);
}

static double rms_of(const double *samples, size_t count)
{
    double sum = 0;
    for (size_t at = 0; at < count; at++)
        sum += samples[at] * samples[at];
    return sqrt(sum / (double)count);
}

/* The strongest frequency, by Goertzel's filter at each whole multiple of the window's resolution. */
static double dominant_hz(const double *samples, size_t count, double rate_hz)
{
    double best_power = -1, best_hz = 0;
    for (size_t bin = 1; bin < count / 2; bin++) {
        double hz = (double)bin * rate_hz / (double)count;
        if (hz > DOMINANT_MAX_HZ)
            break;
        double step = 2 * cos(2 * M_PI * (double)bin / (double)count), before = 0, last = 0;
        for (size_t at = 0; at < count; at++) {
            double now = samples[at] + step * last - before;
            before = last;
            last = now;
        }
        double power = last * last + before * before - step * last * before;
        if (power > best_power) {
            best_power = power;
            best_hz = hz;
        }
    }
    return best_hz;
}

/* Feeds samples to the detector; the numbers of the window become metrics. */
static void analyse(const struct signal *signal, struct detector *detector, size_t from, size_t count,
                    struct totals *totals)
{
    for (size_t at = from; at < from + count; at++) {
        double seconds = (double)at / signal->rate_hz;
        if (detect(detector, signal->samples[at], seconds))
            report_event(detector, seconds, totals);
    }
    double rms = rms_of(signal->samples + from, count);
    double hz = dominant_hz(signal->samples + from, count, signal->rate_hz);
    totals->windows++;
    printf("@metric rms %.3f\n@metric dominant_hz %.3f\n@metric windows_total %ld\n", rms, hz, totals->windows);
}

/* An event that the end of the signal cut off is an event all the same. */
static void end_of_signal(const struct signal *signal, struct detector *detector, struct totals *totals)
{
    if (detector->active)
        report_event(detector, (double)signal->count / signal->rate_hz, totals);
    detector->active = false;
}

/* The first look: the whole signal at once, in windows of one second. */
static void analyse_all(const struct signal *signal, double on, double off, struct totals *totals)
{
    struct detector detector = new_detector(signal->rate_hz, on, off);
    size_t window = (size_t)signal->rate_hz;
    for (size_t from = 0; from < signal->count; from += window) {
        size_t left = signal->count - from;
        analyse(signal, &detector, from, left < window ? left : window, totals);
    }
    end_of_signal(signal, &detector, totals);
    printf("analysed %.1fs: events=%ld rms=%.1f\n", (double)signal->count / signal->rate_hz, totals->events,
           rms_of(signal->samples, signal->count));
}

/* Sleeps until the next whole second of the replay, by the monotonic clock, so that work does not add up to drift. */
static void wait_until(struct timespec *next)
{
    next->tv_sec++;
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, next, NULL);
}

static void replay(const struct signal *signal, double on, double off, size_t per_second, struct totals *totals)
{
    struct timespec next;
    clock_gettime(CLOCK_MONOTONIC, &next);
    for (;;) {
        /* The end does not join the beginning: each pass starts with a fresh detector. */
        struct detector detector = new_detector(signal->rate_hz, on, off);
        for (size_t from = 0; from < signal->count; from += per_second) {
            fflush(stdout);
            wait_until(&next);
            size_t left = signal->count - from;
            analyse(signal, &detector, from, left < per_second ? left : per_second, totals);
            if (totals->windows % WINDOWS_PER_LINE == 0)
                printf("watching windows=%ld events=%ld\n", totals->windows, totals->events);
        }
        end_of_signal(signal, &detector, totals);
        printf("@metric passes %ld\n", ++totals->passes);
    }
}

int main(int argc, char **argv)
{
    const char *path = getenv("SIGNAL"), *version = getenv("VERSION");
    double on = number_from("STA_LTA_ON", getenv("STA_LTA_ON"), 3.0, 1.0, 1000.0);
    double off = number_from("STA_LTA_OFF", getenv("STA_LTA_OFF"), 1.5, 0.01, 1000.0);
    if (off >= on)
        fail("STA_LTA_OFF", "must be below STA_LTA_ON");
    const char *hz = argc > 1 ? argv[1] : getenv("REPLAY_HZ");
    struct totals totals = {0};

    printf("vibration-watch version=%s sta_lta_on=%g sta_lta_off=%g\n", version != NULL ? version : "unset", on, off);
    struct signal signal = read_signal(path != NULL ? path : "/data/signal.gse2");
    double per_second = number_from("REPLAY_HZ", hz, signal.rate_hz, 0, MAX_SAMPLES);
    printf("@metric events 0\n@metric sta_lta_on %g\n", on);
    analyse_all(&signal, on, off, &totals);
    if (per_second >= 2)
        replay(&signal, on, off, (size_t)per_second, &totals);
    return 0;
}
