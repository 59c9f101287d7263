/* An open-loop load, single-threaded: requests leave at a fixed rate, whatever the server does.

       openloop PORT RATE SECONDS FEATURES CONNECTIONS FIRST_VISITOR [QUERY...] > samples

   With queries, such as ?sdkKey=..., each request has one of them, by a hash of its visitor.
   Waits until the next request is due or an answer is there, whichever comes first. Writes for each answer three
   doubles: when the request was meant to leave (seconds since the start), how long after that its answer was there, and
   how late it left although a connection was free, both in seconds. Says on standard error when it started (monotonic
   clock) and how many answers were wrong or missing. See openloop.py.

   Runs before all other processes of its core if it may (CAP_SYS_NICE): clients on other machines would not wait for
   these either. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MOST_CONNECTIONS 1024
#define PATIENCE_SECONDS 30 /* after the last request was due */

static const char RIGHT[] = "\"isEnabled\":true";

static int sockets[MOST_CONNECTIONS];
static struct { double due, late; } asked[MOST_CONNECTIONS];
static int idle[MOST_CONNECTIONS], idle_first, idle_count; /* a ring: the longest idle connection is the next */
static double idle_since;                                  /* when the ring was last empty */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void fail(const char *what)
{
    perror(what);
    exit(2);
}

static int connected(int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int yes = 1, sock = socket(AF_INET, SOCK_STREAM, 0);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (sock < 0 || connect(sock, (struct sockaddr *)&address, sizeof address)) fail("connect");
    if (setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes)) fail("setsockopt");
    if (fcntl(sock, F_SETFL, O_NONBLOCK)) fail("fcntl");
    return sock;
}

static void ask(int connection, long number, long feature, unsigned long long visitor, const char *query)
{
    char body[256], request[512];
    int size = snprintf(body, sizeof body,
                        "{\"featureKey\":\"feature-%ld\",\"userId\":\"visitor-%llu\","
                        "\"customVariables\":{\"plan\":\"%s\",\"age\":33}}",
                        feature, visitor + (unsigned long long)number, number % 2 ? "none" : "gold");
    size = snprintf(request, sizeof request,
                    "POST /server-side/getFlag%s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%s", query, size,
                    body);
    if (size >= (int)sizeof request) fail("a query is too long");
    if (send(sockets[connection], request, (size_t)size, MSG_NOSIGNAL) != size) fail("send");
}

static uint32_t mixed(uint32_t value) /* the same as in openloop.py */
{
    value = (value ^ value >> 16) * 0x85ebca6bu;
    value = (value ^ value >> 13) * 0xc2b2ae35u;
    return value ^ value >> 16;
}

static void put_idle(int connection, int connections)
{
    if (!idle_count) idle_since = now();
    idle[(idle_first + idle_count++) % connections] = connection;
}

static int take_idle(int connections)
{
    int connection = idle[idle_first];
    idle_first = (idle_first + 1) % connections;
    idle_count--;
    return connection;
}

int main(int argc, char **argv)
{
    if (argc < 7) {
        return fputs("usage: openloop PORT RATE SECONDS FEATURES CONNECTIONS FIRST_VISITOR [QUERY...]\n", stderr), 2;
    }
    int port = atoi(argv[1]), features = atoi(argv[4]), connections = atoi(argv[5]);
    double rate = atof(argv[2]), seconds = atof(argv[3]);
    unsigned long long visitor = strtoull(argv[6], NULL, 10);
    long queries = argc > 7 ? argc - 7 : 1;
    if (connections < 1 || connections > MOST_CONNECTIONS || features < 1 || rate <= 0) {
        return fprintf(stderr, "openloop: 1 to %d connections, a feature and a rate\n", MOST_CONNECTIONS), 2;
    }
    long count = (long)(rate * seconds), sent = 0, answered = 0, wrong = 0;
    int poll = epoll_create1(0);
    for (int i = 0; i < connections; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)i};
        sockets[i] = connected(port);
        if (epoll_ctl(poll, EPOLL_CTL_ADD, sockets[i], &event)) fail("epoll_ctl");
        put_idle(i, connections);
    }
    double (*samples)[3] = malloc((size_t)(count + 1) * sizeof *samples);
    if (!samples) fail("malloc");
    memset(samples, 0, (size_t)(count + 1) * sizeof *samples); /* no page faults while it runs */
    struct sched_param first = {.sched_priority = 1};
    sched_setscheduler(0, SCHED_FIFO, &first); /* not permitted: `late` shows what it costs */

    double started = now() + 0.05, end = started + (double)count / rate + PATIENCE_SECONDS;
    while (answered < count) {
        double time = now(), due = 0;
        for (; sent < count && idle_count && (due = started + (double)sent / rate) <= time; sent++, time = now()) {
            double ready = due > idle_since ? due : idle_since;
            int connection = take_idle(connections);
            asked[connection].due = due;
            asked[connection].late = time - ready;
            uint32_t query = mixed((uint32_t)(visitor + (unsigned long long)sent)) % (uint32_t)queries;
            ask(connection, sent, sent % features, visitor, argc > 7 ? argv[7 + query] : "");
        }
        if (time > end) break;
        double patience = sent < count && idle_count ? due - time : 1.0;
        if (patience < 0) patience = 0;
        struct timespec until = {.tv_sec = (time_t)patience};
        until.tv_nsec = (long)((patience - (double)until.tv_sec) * 1e9);
        struct epoll_event events[MOST_CONNECTIONS];
        int ready = epoll_pwait2(poll, events, connections, &until, NULL);
        if (ready < 0 && errno != EINTR) fail("epoll_pwait2");
        for (int i = 0; i < ready; i++) {
            char answer[65536];
            int connection = (int)events[i].data.u32;
            ssize_t size = recv(sockets[connection], answer, sizeof answer, 0);
            if (size <= 0) fail("the server has closed a connection");
            samples[answered][0] = asked[connection].due - started;
            samples[answered][1] = now() - asked[connection].due;
            samples[answered++][2] = asked[connection].late;
            wrong += !memmem(answer, (size_t)size, RIGHT, sizeof RIGHT - 1);
            put_idle(connection, connections);
        }
    }
    fwrite(samples, sizeof *samples, (size_t)answered, stdout);
    fprintf(stderr, "%.9f %ld\n", started, wrong + count - answered);
    return 0;
}
