/*
 * The load generator of scripts/bench: thousands of clients and one publisher in one thread.
 *
 *     loader ADDRESS      reads commands from stdin, answers each with one line of JSON
 *
 * Clients are WebSockets or streams of Server-Sent Events, as described in files that loader.py
 * writes: the request, then steps "wait for this text, then send that", until the client is ready.
 * The publisher is one TCP connection that sends prepared bytes (a line, a PUB of NATS, a PUBLISH
 * of Redis, an HTTP request). Each payload contains MARK and 12 digits, the time in microseconds;
 * the publisher fills it in and the clients read it, so latency needs no second clock.
 *
 * The commands:
 *     clients PATH                the clients that may be opened from now on
 *     open COUNT IN_FLIGHT        open more clients; answers when all are ready
 *     publisher PORT PATH         connect the publisher
 *     send COUNT                  publish at once, without waiting for deliveries
 *     rate PER_SECOND SECONDS     publish in regular intervals
 *     paced PER_SECOND SECONDS    the same, but each message only when the one before has arrived
 *     window AHEAD SECONDS        publish as long as at most AHEAD messages are not delivered
 *     expect COUNT SECONDS        wait until COUNT messages have arrived since the last `reset`
 *     reset                       forget what has arrived
 *     cut                         close all clients' sockets, at once and without a handshake
 *     sample                      the last message of any client, in hexadecimal
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define MARK "~~"
#define DIGITS 12
#define READ_BYTES (256 * 1024)
#define MAX_PARTIAL (16 * 1024 * 1024) /* of one frame; more is an error of the server */
#define MAX_SAMPLE 65536
#define MAX_LATENCY_US 10000000
#define MAX_JOINS 65536
#define DRAIN_S 15.0
#define OPEN_S 120.0

enum { CLOSED, CONNECTING, SHAKING, JOINING, READY };

struct step {
    const char *marker; /* wait for a frame that contains this; empty: do not wait */
    uint32_t marker_size, times;
    const char *reply; /* then send this, which is a complete frame */
    uint32_t reply_size;
};

struct plan { /* how a client connects */
    int is_stream;
    const char *head;
    uint32_t head_size;
    struct step *steps;
    uint32_t count;
};

struct client {
    int fd;
    int state;
    uint32_t plan, step, seen;
    char *partial; /* the beginning of a frame that has not arrived completely */
    uint32_t partial_size, partial_room;
    uint64_t messages, asked_us; /* when it sent its last step */
};

struct template {
    char *bytes;
    uint32_t size, fan_out;
    uint32_t places[4], place_count; /* where the digits are */
};

static const char *address;
static int epoll_fd, timer_fd;
static struct plan *plans;
static uint32_t plan_count;
static struct client *clients;
static uint32_t client_room, client_count, ready_count, opening;
static uint16_t client_port;

static int publisher_fd = -1;
static struct template *templates;
static uint32_t template_count, *order, order_count, at_order;
static char *outgoing;
static size_t outgoing_size, outgoing_at, outgoing_room;

static uint64_t messages, frames, frame_bytes, published, expected, lost_clients;
static uint32_t *latencies;
static uint64_t latency_count, latency_sum, latency_max;
static char sample[MAX_SAMPLE];
static uint32_t sample_size;
static char buffer[READ_BYTES + MAX_PARTIAL];
static char *replies[8][2]; /* texts that the server sends as pings, and the answers */
static uint32_t reply_count;
static uint32_t joins[MAX_JOINS]; /* microseconds from the last step sent until ready */
static uint32_t join_count;
static double first_arrival, last_arrival;
static int64_t owed; /* deliveries of all messages published so far that have not arrived */

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static double cpu_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void answer(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    putchar('\n');
    fflush(stdout);
}

static void fail(const char *format, ...) {
    va_list arguments;
    fputs("loader: ", stderr);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

static void *room(void *old, size_t size) {
    void *made = realloc(old, size ? size : 1);
    if (!made) fail("out of memory");
    return made;
}

/* Files of loader.py: numbers are 32 bits, little endian; a text is its length and its bytes. */

struct file { char *bytes; size_t size, at; };

static struct file read_file(const char *path) {
    struct file file = {0};
    FILE *opened = fopen(path, "rb");
    if (!opened) fail("cannot open %s: %s", path, strerror(errno));
    fseek(opened, 0, SEEK_END);
    file.size = (size_t)ftell(opened);
    rewind(opened);
    file.bytes = room(NULL, file.size);
    if (fread(file.bytes, 1, file.size, opened) != file.size) fail("cannot read %s", path);
    fclose(opened);
    return file;
}

static uint32_t number(struct file *file) {
    uint32_t value;
    if (file->at + 4 > file->size) fail("a file is too short");
    memcpy(&value, file->bytes + file->at, 4);
    file->at += 4;
    return value;
}

static char *text(struct file *file, uint32_t *size) {
    *size = number(file);
    if (file->at + *size > file->size) fail("a file is too short");
    char *start = file->bytes + file->at;
    file->at += *size;
    return start;
}

static void load_clients(const char *path) {
    struct file file = read_file(path); /* kept: plans point into it */
    uint32_t size;
    client_port = (uint16_t)number(&file);
    reply_count = number(&file);
    if (reply_count > 8) fail("too many replies");
    for (uint32_t i = 0; i < reply_count; i++)
        for (int side = 0; side < 2; side++) {
            char *bytes = text(&file, &size);
            replies[i][side] = strndup(bytes, size);
        }
    plan_count = number(&file);
    plans = room(NULL, plan_count * sizeof *plans);
    for (uint32_t i = 0; i < plan_count; i++) {
        plans[i].is_stream = (int)number(&file);
        plans[i].head = text(&file, &plans[i].head_size);
        plans[i].count = number(&file);
        plans[i].steps = room(NULL, plans[i].count * sizeof(struct step));
        for (uint32_t s = 0; s < plans[i].count; s++) {
            struct step *step = &plans[i].steps[s];
            step->marker = text(&file, &step->marker_size);
            step->times = number(&file);
            step->reply = text(&file, &step->reply_size);
        }
    }
    if (plan_count > client_room) {
        clients = room(clients, plan_count * sizeof *clients);
        memset(clients + client_room, 0, (plan_count - client_room) * sizeof *clients);
        client_room = plan_count;
    }
}

/* Clients */

static void watch(int fd, uint32_t events, uint64_t key, int operation) {
    struct epoll_event event = {.events = events, .data.u64 = key};
    if (epoll_ctl(epoll_fd, operation, fd, &event)) fail("epoll: %s", strerror(errno));
}

static struct sockaddr_in socket_address(uint16_t port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    if (inet_pton(AF_INET, address, &to.sin_addr) != 1) fail("%s is not an address", address);
    return to;
}

static void send_small(struct client *client, const char *bytes, size_t size) {
    /* Requests and commands are small and the socket's buffer is empty: they fit. */
    while (size) {
        ssize_t sent = send(client->fd, bytes, size, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EINTR) continue;
            if (errno == EAGAIN) { usleep(100); continue; }
            return; /* the next read reports it */
        }
        bytes += sent;
        size -= (size_t)sent;
    }
}

static void close_client(struct client *client, int reset) {
    if (client->state == CLOSED) return;
    if (reset) {
        struct linger linger = {1, 0};
        setsockopt(client->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    }
    if (client->state == READY) ready_count--;
    else opening--;
    close(client->fd);
    client->state = CLOSED;
    client->partial_size = 0;
}

static void lose_client(struct client *client, const char *reason) {
    if (lost_clients++ < 5) fprintf(stderr, "loader: a client ended: %s\n", reason);
    close_client(client, 1);
}

static void open_client(uint32_t index) {
    struct client *client = &clients[index];
    struct sockaddr_in to = socket_address(client_port);
    int one = 1;
    char *partial = client->partial;
    uint32_t partial_room = client->partial_room;
    memset(client, 0, sizeof *client);
    client->partial = partial;
    client->partial_room = partial_room;
    client->plan = index;
    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (client->fd < 0) fail("socket: %s", strerror(errno));
    setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(client->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS)
        fail("connect: %s", strerror(errno));
    client->state = CONNECTING;
    opening++;
    watch(client->fd, EPOLLIN | EPOLLOUT, index, EPOLL_CTL_ADD);
}

static void advance(struct client *client) {
    struct plan *plan = &plans[client->plan];
    while (client->step < plan->count) {
        struct step *step = &plan->steps[client->step];
        if (step->marker_size && client->seen < step->times) return;
        send_small(client, step->reply, step->reply_size);
        if (step->reply_size) client->asked_us = now_us();
        client->step++;
        client->seen = 0;
    }
    client->state = READY;
    opening--;
    ready_count++;
    if (client->asked_us && join_count < MAX_JOINS)
        joins[join_count++] = (uint32_t)(now_us() - client->asked_us);
}

static void join(struct client *client, const char *payload, size_t size) {
    struct step *step = &plans[client->plan].steps[client->step];
    const char *at = payload, *end = payload + size;
    while ((at = memmem(at, (size_t)(end - at), step->marker, step->marker_size))) {
        client->seen++;
        at += step->marker_size;
    }
    advance(client);
}

static void count_messages(struct client *client, const char *payload, size_t size, uint64_t now) {
    const char *at = payload, *end = payload + size;
    while ((at = memchr(at, MARK[0], (size_t)(end - at)))) {
        if (end - at < DIGITS + 2) break;
        if (at[1] != MARK[1]) { at++; continue; }
        uint64_t sent = 0;
        for (int i = 0; i < DIGITS; i++) sent = sent * 10 + (uint64_t)(at[2 + i] - '0');
        client->messages++;
        messages++;
        owed--;
        uint64_t taken = now > sent ? now - sent : 0;
        if (taken > latency_max) latency_max = taken;
        latencies[taken < MAX_LATENCY_US ? taken : MAX_LATENCY_US - 1]++;
        latency_sum += taken;
        latency_count++;
        at += DIGITS + 2;
    }
    if (!sample_size && size <= MAX_SAMPLE && memmem(payload, size, MARK, 2)) {
        memcpy(sample, payload, size);
        sample_size = (uint32_t)size;
    }
}

static void take_text(struct client *client, const char *payload, size_t size, uint64_t now) {
    for (uint32_t i = 0; i < reply_count; i++) {
        size_t length = strlen(replies[i][0]);
        if (size == length && !memcmp(payload, replies[i][0], length)) {
            size_t reply = strlen(replies[i][1]);
            char frame[64] = {(char)0x81, (char)(0x80 | reply)};
            memcpy(frame + 6, replies[i][1], reply); /* the mask is zero */
            send_small(client, frame, 6 + reply);
            return;
        }
    }
    if (client->state == JOINING) join(client, payload, size);
    uint64_t before = messages;
    count_messages(client, payload, size, now);
    if (messages != before) { frames++; frame_bytes += size; }
}

/* Handles all complete frames of servers, which are not masked. Returns how many bytes they have. */
static size_t take_frames(struct client *client, const char *data, size_t size, uint64_t now) {
    size_t at = 0;
    while (size - at >= 2 && client->state != CLOSED) {
        const unsigned char *head = (const unsigned char *)data + at;
        uint64_t length = head[1] & 127;
        size_t start = 2;
        if (length == 126) {
            if (size - at < 4) break;
            length = (uint64_t)head[2] << 8 | head[3];
            start = 4;
        } else if (length == 127) {
            if (size - at < 10) break;
            length = 0;
            for (int i = 2; i < 10; i++) length = length << 8 | head[i];
            start = 10;
        }
        if (length > MAX_PARTIAL) { lose_client(client, "a frame is too large"); break; }
        if (size - at < start + length) break;
        const char *payload = data + at + start;
        switch (head[0] & 15) {
        case 0:
        case 1:
        case 2:
            take_text(client, payload, length, now);
            break;
        case 8:
            lose_client(client, "the server closed the connection");
            break;
        case 9: {
            char frame[6 + 125] = {(char)0x8a, (char)(0x80 | length)}; /* the mask is zero */
            if (length > 125) { lose_client(client, "a ping is too long"); break; }
            memcpy(frame + 6, payload, length);
            send_small(client, frame, 6 + length);
        }
        }
        at += start + length;
    }
    return at;
}

/* Events end with a line break; what is after the last one is kept for the next read. */
static size_t take_lines(struct client *client, const char *data, size_t size, uint64_t now) {
    const char *last = memrchr(data, '\n', size);
    if (!last) return 0;
    size_t complete = (size_t)(last - data) + 1;
    if (client->state == JOINING) join(client, data, complete);
    uint64_t before = messages;
    count_messages(client, data, complete, now);
    frames += messages - before;
    frame_bytes += messages == before ? 0 : complete;
    return complete;
}

static void read_client(struct client *client) {
    size_t kept = client->partial_size;
    if (kept) memcpy(buffer, client->partial, kept);
    ssize_t got = recv(client->fd, buffer + kept, READ_BYTES, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) {
        lose_client(client, got ? strerror(errno) : "the server closed the socket");
        return;
    }
    uint64_t now = now_us();
    size_t size = kept + (size_t)got, at = 0;
    if (client->state == SHAKING) {
        char *end = memmem(buffer, size, "\r\n\r\n", 4);
        if (end) {
            if (memcmp(buffer, "HTTP/1.1 101", 12) && memcmp(buffer, "HTTP/1.1 200", 12)) {
                fprintf(stderr, "%.*s\n", (int)(size < 500 ? size : 500), buffer);
                lose_client(client, "the handshake was refused");
                return;
            }
            at = (size_t)(end - buffer) + 4;
            client->state = JOINING;
            advance(client);
        }
    }
    if (client->state >= JOINING) {
        uint64_t before = messages;
        at += plans[client->plan].is_stream ? take_lines(client, buffer + at, size - at, now)
                                            : take_frames(client, buffer + at, size - at, now);
        if (messages != before) {
            last_arrival = (double)now / 1e6;
            if (!first_arrival) first_arrival = last_arrival;
        }
    }
    if (client->state == CLOSED) return;
    size_t rest = size - at;
    if (rest > MAX_PARTIAL) {
        lose_client(client, "a frame is too large");
        return;
    }
    if (rest > client->partial_room) {
        client->partial_room = (uint32_t)rest * 2;
        client->partial = room(client->partial, client->partial_room);
    }
    if (rest) memcpy(client->partial, buffer + at, rest);
    client->partial_size = (uint32_t)rest;
}

static void connected(uint32_t index) {
    struct client *client = &clients[index];
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(client->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) {
        lose_client(client, strerror(error));
        return;
    }
    watch(client->fd, EPOLLIN, index, EPOLL_CTL_MOD);
    client->state = SHAKING;
    send_small(client, plans[index].head, plans[index].head_size);
}

/* The publisher */

#define PUBLISHER UINT64_MAX
#define STDIN (UINT64_MAX - 1)
#define TIMER (UINT64_MAX - 2)

static void flush_publisher(void) {
    while (outgoing_at < outgoing_size) {
        ssize_t sent = send(
            publisher_fd, outgoing + outgoing_at, outgoing_size - outgoing_at, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EINTR) continue;
            if (errno != EAGAIN) fail("the publisher's connection: %s", strerror(errno));
            watch(publisher_fd, EPOLLIN | EPOLLOUT, PUBLISHER, EPOLL_CTL_MOD);
            return;
        }
        outgoing_at += (size_t)sent;
    }
    outgoing_at = outgoing_size = 0;
    watch(publisher_fd, EPOLLIN, PUBLISHER, EPOLL_CTL_MOD);
}

static void put(const char *bytes, size_t size) {
    if (outgoing_size + size > outgoing_room) {
        outgoing_room = (outgoing_size + size) * 2;
        outgoing = room(outgoing, outgoing_room);
    }
    memcpy(outgoing + outgoing_size, bytes, size);
    outgoing_size += size;
}

static uint32_t publish(void) {
    struct template *template = &templates[order[at_order]];
    at_order = (at_order + 1) % order_count;
    char digits[DIGITS + 1];
    /* The last 12 digits of the time, which 12 digits hold for 11 days of uptime. */
    static uint64_t last;
    uint64_t time = now_us();
    if (time <= last) time = last + 1; /* message ids contain it, so it is unique */
    last = time;
    snprintf(digits, sizeof digits, "%012llu", (unsigned long long)(time % 1000000000000ULL));
    for (uint32_t i = 0; i < template->place_count; i++)
        memcpy(template->bytes + template->places[i], digits, DIGITS);
    put(template->bytes, template->size);
    published++;
    expected += template->fan_out;
    owed += template->fan_out;
    return template->fan_out;
}

static void read_publisher(void) {
    static char answers[65536];
    ssize_t got = recv(publisher_fd, answers, sizeof answers, 0);
    if (!got) fail("the publisher's connection was closed");
    if (got < 0) {
        if (errno == EAGAIN || errno == EINTR) return;
        fail("the publisher's connection: %s", strerror(errno));
    }
    if (memmem(answers, (size_t)got, "PING\r\n", 6)) put("PONG\r\n", 6); /* of NATS */
    if (memmem(answers, (size_t)got, "-ERR", 4))
        fail("the broker refused: %.*s", (int)(got < 200 ? got : 200), answers);
}

static void load_publisher(uint16_t port, const char *path) {
    struct file file = read_file(path);
    uint32_t size;
    int one = 1;
    struct sockaddr_in to = socket_address(port);
    if (publisher_fd >= 0) close(publisher_fd);
    publisher_fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(publisher_fd, (struct sockaddr *)&to, sizeof to))
        fail("cannot connect the publisher: %s", strerror(errno));
    setsockopt(publisher_fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(publisher_fd, F_SETFL, O_NONBLOCK);
    watch(publisher_fd, EPOLLIN, PUBLISHER, EPOLL_CTL_ADD);
    char *preamble = text(&file, &size);
    outgoing_at = outgoing_size = 0;
    put(preamble, size);
    template_count = number(&file);
    templates = room(NULL, template_count * sizeof *templates);
    for (uint32_t i = 0; i < template_count; i++) {
        struct template *template = &templates[i];
        template->fan_out = number(&file);
        template->bytes = text(&file, &template->size);
        template->place_count = 0;
        char *at = template->bytes, *end = at + template->size;
        while ((at = memmem(at, (size_t)(end - at), MARK, 2)) && end - at >= DIGITS + 2) {
            if (template->place_count == 4) fail("too many marks in a template");
            template->places[template->place_count++] = (uint32_t)(at + 2 - template->bytes);
            at += DIGITS + 2;
        }
    }
    order_count = number(&file);
    order = room(NULL, order_count * sizeof *order);
    for (uint32_t i = 0; i < order_count; i++) order[i] = number(&file);
    at_order = 0;
    flush_publisher();
}

/* One round of events. Returns whether a command is waiting on stdin. */
static int turn(int timeout_ms, int with_stdin) {
    static struct epoll_event events[1024];
    int is_command = 0;
    int count = epoll_wait(epoll_fd, events, 1024, timeout_ms);
    if (count < 0 && errno != EINTR) fail("epoll_wait: %s", strerror(errno));
    for (int i = 0; i < count; i++) {
        uint64_t key = events[i].data.u64;
        if (key == STDIN) { is_command = with_stdin; continue; }
        if (key == TIMER) {
            uint64_t expired;
            if (read(timer_fd, &expired, sizeof expired) < 0 && errno != EAGAIN)
                fail("timer: %s", strerror(errno));
            continue;
        }
        if (key == PUBLISHER) {
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) read_publisher();
            continue;
        }
        struct client *client = &clients[key];
        if (client->state == CLOSED) continue;
        if (client->state == CONNECTING) connected((uint32_t)key);
        else read_client(client);
    }
    if (publisher_fd >= 0 && outgoing_size) flush_publisher();
    return is_command;
}

static void forget(void) {
    memset(latencies, 0, MAX_LATENCY_US * sizeof *latencies);
    messages = frames = frame_bytes = published = expected = 0;
    latency_count = latency_sum = latency_max = 0;
    first_arrival = last_arrival = 0;
    for (uint32_t i = 0; i < client_count; i++) clients[i].messages = 0;
}

static uint64_t quantile(double part) {
    uint64_t wanted = (uint64_t)((double)latency_count * part), seen = 0;
    for (uint64_t i = 0; i < MAX_LATENCY_US; i++)
        if ((seen += latencies[i]) > wanted) return i;
    return latency_max;
}

static int by_size(const void *left, const void *right) {
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return a < b ? -1 : a > b;
}

static void report(double start, double cpu) {
    double seconds = now_s() - start;
    uint64_t least = UINT64_MAX, most = 0;
    for (uint32_t i = 0; i < client_count; i++) {
        if (clients[i].messages < least) least = clients[i].messages;
        if (clients[i].messages > most) most = clients[i].messages;
    }
    qsort(joins, join_count, sizeof *joins, by_size);
    answer(
        "{\"published\":%llu,\"expected\":%llu,\"messages\":%llu,\"frames\":%llu,"
        "\"frame_bytes\":%llu,\"seconds\":%.6f,\"first_s\":%.6f,\"last_s\":%.6f,"
        "\"p50_us\":%llu,\"p90_us\":%llu,\"p99_us\":%llu,\"max_us\":%llu,\"loader_cpu\":%.4f,"
        "\"join_p50_us\":%u,\"join_max_us\":%u,\"least\":%llu,\"most\":%llu,\"ready\":%u,\"lost\":%llu}",
        (unsigned long long)published, (unsigned long long)expected, (unsigned long long)messages,
        (unsigned long long)frames, (unsigned long long)frame_bytes, seconds,
        first_arrival ? first_arrival - start : 0.0, last_arrival ? last_arrival - start : 0.0,
        (unsigned long long)quantile(0.5), (unsigned long long)quantile(0.9),
        (unsigned long long)quantile(0.99), (unsigned long long)latency_max,
        (cpu_s() - cpu) / (seconds > 0 ? seconds : 1), join_count ? joins[join_count / 2] : 0,
        join_count ? joins[join_count - 1] : 0, (unsigned long long)least,
        (unsigned long long)most, ready_count, (unsigned long long)lost_clients);
}

static int remaining_ms(double until) {
    double left = (until - now_s()) * 1000;
    return left <= 0 ? 0 : left > 100 ? 100 : (int)left + 1;
}

static void await_deliveries(uint64_t wanted, double until) {
    while (messages < wanted && now_s() < until) turn(remaining_ms(until), 0);
}

static void open_clients(uint32_t count, uint32_t in_flight) {
    double start = now_s(), cpu = cpu_s(), until = start + OPEN_S;
    uint32_t wanted = client_count + count;
    if (wanted > plan_count) fail("there are only %u clients in the file", plan_count);
    uint64_t lost = lost_clients;
    join_count = 0;
    while (ready_count < wanted && now_s() < until && lost_clients == lost) {
        while (client_count < wanted && opening < in_flight) open_client(client_count++);
        turn(remaining_ms(until), 0);
    }
    report(start, cpu);
}

/* Polling instead would use the core of the broker. */
static void wake_at(double time) {
    struct itimerspec at = {0};
    at.it_value.tv_sec = (time_t)time;
    at.it_value.tv_nsec = (long)((time - (double)at.it_value.tv_sec) * 1e9);
    if (timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &at, NULL))
        fail("timer: %s", strerror(errno));
}

static void run_rate(double per_second, double seconds, int is_paced) {
    double start = now_s(), cpu = cpu_s(), next = start;
    forget();
    while (now_s() - start < seconds) {
        while (next <= now_s() && next - start < seconds && (!is_paced || owed <= 0)) {
            publish();
            next = is_paced ? now_s() + 1 / per_second : next + 1 / per_second;
        }
        if (outgoing_size) flush_publisher();
        double end = start + seconds;
        wake_at(next < end && next > now_s() ? next : end); /* or a delivery is waited for */
        turn(100, 0);
    }
    double until = now_s() + DRAIN_S;
    while (owed > 0 && now_s() < until) turn(remaining_ms(until), 0);
    report(start, cpu);
}

static void run_window(uint32_t ahead, double seconds) {
    double start = now_s(), cpu = cpu_s();
    forget();
    uint64_t total = 0;
    for (uint32_t i = 0; i < order_count; i++) total += templates[order[i]].fan_out;
    double fan_out = (double)total / order_count;
    while (now_s() - start < seconds) {
        int added = 0;
        while ((double)owed <= (ahead - 1) * fan_out && added++ < 256) publish();
        if (outgoing_size) flush_publisher();
        turn(100, 0);
    }
    /* As much was on its way at the start, from a warm-up, as there is now. */
    report(start, cpu);
}

static void command(char *line) {
    char name[16] = "", path[4096] = "";
    double first = 0, second = 0;
    if (sscanf(line, "%15s", name) != 1) return;
    double start = now_s(), cpu = cpu_s();
    if (!strcmp(name, "clients") && sscanf(line, "%*s %4095s", path) == 1) {
        load_clients(path);
        answer("{}");
    } else if (!strcmp(name, "open") && sscanf(line, "%*s %lf %lf", &first, &second) == 2) {
        open_clients((uint32_t)first, (uint32_t)second);
    } else if (!strcmp(name, "publisher")
               && sscanf(line, "%*s %lf %4095s", &first, path) == 2) {
        load_publisher((uint16_t)first, path);
        answer("{}");
    } else if (!strcmp(name, "send") && sscanf(line, "%*s %lf", &first) == 1) {
        for (uint32_t i = 0; i < (uint32_t)first; i++) publish();
        while (outgoing_size) turn(10, 0);
        report(start, cpu);
    } else if (!strcmp(name, "rate") && sscanf(line, "%*s %lf %lf", &first, &second) == 2) {
        run_rate(first, second, 0);
    } else if (!strcmp(name, "paced") && sscanf(line, "%*s %lf %lf", &first, &second) == 2) {
        run_rate(first, second, 1);
    } else if (!strcmp(name, "window") && sscanf(line, "%*s %lf %lf", &first, &second) == 2) {
        run_window((uint32_t)first, second);
    } else if (!strcmp(name, "expect") && sscanf(line, "%*s %lf %lf", &first, &second) == 2) {
        await_deliveries((uint64_t)first, start + second);
        report(start, cpu);
    } else if (!strcmp(name, "reset")) {
        forget();
        owed = 0;
        answer("{}");
    } else if (!strcmp(name, "cut")) {
        for (uint32_t i = 0; i < client_count; i++) close_client(&clients[i], 1);
        client_count = 0;
        owed = 0;
        answer("{}");
    } else if (!strcmp(name, "sample")) {
        printf("{\"hex\":\"");
        for (uint32_t i = 0; i < sample_size; i++) printf("%02x", (unsigned char)sample[i]);
        answer("\"}");
        sample_size = 0;
    } else {
        fail("unknown command: %s", line);
    }
}

int main(int argc, char **argv) {
    struct rlimit limit;
    if (argc != 2) fail("usage: loader ADDRESS");
    address = argv[1];
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    epoll_fd = epoll_create1(0);
    latencies = calloc(MAX_LATENCY_US, sizeof *latencies);
    if (!latencies) fail("out of memory");
    watch(0, EPOLLIN, STDIN, EPOLL_CTL_ADD);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    watch(timer_fd, EPOLLIN, TIMER, EPOLL_CTL_ADD);
    static char line[8192];
    size_t size = 0;
    for (;;) {
        if (!turn(-1, 1)) continue;
        ssize_t got = read(0, line + size, sizeof line - 1 - size);
        if (got <= 0) return 0;
        size += (size_t)got;
        line[size] = 0;
        char *end;
        while ((end = strchr(line, '\n'))) {
            *end = 0;
            command(line);
            size -= (size_t)(end + 1 - line);
            memmove(line, end + 1, size + 1);
        }
        if (size == sizeof line - 1) fail("a command is too long");
    }
}
