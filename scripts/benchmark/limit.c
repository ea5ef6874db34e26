/*
 * The limit of the machine: a server that does nothing but send() each frame to each client.
 *
 *     limit CLIENTS_PORT PUBLISHER_PORT
 *
 * Clients ask for /ws?channel=cN or /sse?channel=cN&channel=cM. The publisher sends lines: a
 * channel, a tab, the payload. There are no checks, limits, tokens, history or buffers here; the
 * answer to the handshake is that to the one key which the load generator sends.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define CHANNELS 131072
#define SOCKETS 131072
#define LINE (1024 * 1024)

struct subscribers { int *fds; uint32_t count, room; };

static struct subscribers websockets[CHANNELS], streams[CHANNELS];
static char kinds[SOCKETS]; /* 0: unknown, 1: a client, 2: the publisher */
static char lines[LINE];
static size_t lines_size;

static const char UPGRADED[] =
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Accept: tEr7dfkXSauwRTVtlbOEL405670=\r\n\r\n";
static const char STREAM[] =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: keep-alive\r\n\r\n"
    ":joined\n\n";

static int fail(const char *what) {
    perror(what);
    exit(1);
}

static int listen_on(uint16_t port) {
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, 4096)) fail("listen");
    return fd;
}

static void add(struct subscribers *to, int fd) {
    if (to->count == to->room) {
        to->room = to->room ? to->room * 2 : 4;
        to->fds = realloc(to->fds, to->room * sizeof *to->fds);
        if (!to->fds) fail("realloc");
    }
    to->fds[to->count++] = fd;
}

static void remove_everywhere(int fd) {
    for (uint32_t channel = 0; channel < CHANNELS; channel++)
        for (int stream = 0; stream < 2; stream++) {
            struct subscribers *from = stream ? &streams[channel] : &websockets[channel];
            for (uint32_t i = 0; i < from->count; i++)
                if (from->fds[i] == fd) from->fds[i--] = from->fds[--from->count];
        }
}

static void send_all(int fd, const char *bytes, size_t size) {
    while (size) {
        ssize_t sent = send(fd, bytes, size, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EINTR) continue;
            if (errno != EAGAIN) return;
            struct pollfd wait = {fd, POLLOUT, 0};
            poll(&wait, 1, -1);
            continue;
        }
        bytes += sent;
        size -= (size_t)sent;
    }
}

static void publish(char *line, size_t size) {
    static char frame[LINE + 16];
    char *payload = memchr(line, '\t', size);
    if (!payload || line[0] != 'c') return;
    uint32_t channel = (uint32_t)atoi(line + 1) % CHANNELS;
    size_t length = size - (size_t)(++payload - line), head;
    if (websockets[channel].count) {
        frame[0] = (char)0x81;
        if (length < 126) {
            frame[1] = (char)length;
            head = 2;
        } else if (length < 65536) {
            frame[1] = 126;
            frame[2] = (char)(length >> 8);
            frame[3] = (char)length;
            head = 4;
        } else {
            frame[1] = 127;
            for (int i = 0; i < 8; i++) frame[2 + i] = (char)(length >> (56 - 8 * i));
            head = 10;
        }
        memcpy(frame + head, payload, length);
        for (uint32_t i = 0; i < websockets[channel].count; i++)
            send_all(websockets[channel].fds[i], frame, head + length);
    }
    if (streams[channel].count) {
        memcpy(frame, "data: ", 6);
        memcpy(frame + 6, payload, length);
        memcpy(frame + 6 + length, "\n\n", 2);
        for (uint32_t i = 0; i < streams[channel].count; i++)
            send_all(streams[channel].fds[i], frame, length + 8);
    }
}

static void read_publisher(int fd) {
    ssize_t got = read(fd, lines + lines_size, LINE - lines_size);
    if (got <= 0) {
        if (got == 0 || errno != EAGAIN) close(fd);
        return;
    }
    lines_size += (size_t)got;
    char *start = lines, *end;
    while ((end = memchr(start, '\n', lines_size - (size_t)(start - lines)))) {
        publish(start, (size_t)(end - start));
        start = end + 1;
    }
    lines_size -= (size_t)(start - lines);
    memmove(lines, start, lines_size);
}

static void read_client(int fd) {
    static char request[65536];
    ssize_t got = read(fd, request, sizeof request - 1);
    if (got <= 0) {
        if (got == 0 || errno != EAGAIN) {
            if (kinds[fd] == 1) remove_everywhere(fd);
            close(fd);
        }
        return;
    }
    if (kinds[fd]) return; /* pongs and closes */
    request[got] = 0;
    int is_stream = !strncmp(request, "GET /sse", 8);
    char *end = strchr(request + 5, ' ');
    if (end) *end = 0;
    kinds[fd] = 1;
    for (char *at = request; (at = strstr(at, "channel=c")); at += 9)
        add(is_stream ? &streams[atoi(at + 9) % CHANNELS] : &websockets[atoi(at + 9) % CHANNELS],
            fd);
    if (is_stream) send_all(fd, STREAM, sizeof STREAM - 1);
    else send_all(fd, UPGRADED, sizeof UPGRADED - 1);
}

int main(int argc, char **argv) {
    struct rlimit limit;
    if (argc != 3) return fputs("usage: limit CLIENTS_PORT PUBLISHER_PORT\n", stderr), 2;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max < SOCKETS ? limit.rlim_max : SOCKETS;
    setrlimit(RLIMIT_NOFILE, &limit);
    int epoll = epoll_create1(0);
    int listeners[2] = {
        listen_on((uint16_t)atoi(argv[1])), listen_on((uint16_t)atoi(argv[2]))};
    struct epoll_event events[256], event = {.events = EPOLLIN};
    for (int i = 0; i < 2; i++) {
        event.data.fd = listeners[i];
        epoll_ctl(epoll, EPOLL_CTL_ADD, listeners[i], &event);
    }
    puts("ready");
    fflush(stdout);
    for (;;) {
        int count = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == listeners[0] || fd == listeners[1]) {
                int accepted, one = 1;
                while ((accepted = accept4(fd, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    setsockopt(accepted, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    kinds[accepted] = fd == listeners[1] ? 2 : 0;
                    event.data.fd = accepted;
                    epoll_ctl(epoll, EPOLL_CTL_ADD, accepted, &event);
                }
            } else if (kinds[fd] == 2) {
                read_publisher(fd);
            } else {
                read_client(fd);
            }
        }
    }
}
