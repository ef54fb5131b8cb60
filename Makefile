# make                  build/ngx_http_kontext_module.so for the installed nginx
# make test             unit tests, style check, t/ against that nginx
# make NGINX_SRC=/path  the same out of a plain nginx source tree
#
# Nothing is written outside $(BUILD).

BUILD = build

# Debian's nginx-dev puts its configured tree here

NGINX_SRC = /usr/share/nginx/src

# Taken from nginx-dev's conf_flags where there is one

NGINX_CONF_FLAGS =

CFLAGS  = -O2 -g -fstack-protector-strong
LDFLAGS = -Wl,-z,relro -Wl,-z,now

DESTDIR     =
MODULES_DIR = /usr/lib/nginx/modules
CONF_DIR    = /etc/nginx

NGINX_BIN    = /usr/sbin/nginx
ECHO_MODULE  = /usr/lib/nginx/modules/ngx_http_echo_module.so
T            = t

# the tests wait more than they work

PROVE_JOBS   = 4

FUZZ_SECONDS = 5
FUZZ_CC      = clang

# -Wall, -Wextra, -Wpointer-arith and -Werror come from nginx's configure for
# the module, and must not be given to it: they would fail its feature tests.

WARN     = -Wshadow -Wdeclaration-after-statement -Wvla -Wmissing-prototypes
WARN_ALL = -std=gnu99 -Wall -Wextra -Wpointer-arith -Wno-unused-parameter \
           $(WARN) -Werror


ROOT     := $(CURDIR)
BUILD_DIR = $(abspath $(BUILD))
OBJS      = $(BUILD_DIR)/objs
MODULE    = $(BUILD_DIR)/ngx_http_kontext_module.so

CORE := $(wildcard ngx_kontext_module/core/*.c ngx_kontext_module/core/*/*.c)
SRCS := $(CORE) $(wildcard ngx_kontext_module/*.c)
HDRS := $(wildcard ngx_kontext_module/*.h ngx_kontext_module/core/*.h \
                   ngx_kontext_module/core/*/*.h)

UNIT := $(patsubst unit/%.c,%,$(wildcard unit/test_*.c))
FUZZ := $(patsubst fuzz/%.c,%,$(wildcard fuzz/fuzz_*.c))


.PHONY: all module unit streams fuzz fuzz-whole test nginx-tests style lint \
        test-asan test-faults test-valgrind test-versions coverage install \
        clean FORCE
.DELETE_ON_ERROR:

# "make CFLAGS=..." is for this file: nginx's Makefile has its own, with its
# own warnings

MAKEOVERRIDES =

all: module
module: $(MODULE)


# The module.  nginx's configure writes a Makefile into the directory it runs
# in, which for an installed tree is no place for us: run it in a directory of
# links to that tree.

CONFIGURED = $(CC) $(CFLAGS) $(LDFLAGS) $(WARN) $(NGINX_SRC) \
             $(NGINX_CONF_FLAGS) $(HDRS)

$(BUILD_DIR)/configured: FORCE
	@mkdir -p $(BUILD_DIR)
	@test -x $(NGINX_SRC)/configure || { echo "no nginx source in \
	$(NGINX_SRC): install nginx-dev or set NGINX_SRC" >&2; exit 1; }
	@{ echo '$(subst ','\'',$(CONFIGURED))'; \
	   cat $(NGINX_SRC)/src/core/nginx.h; \
	   cat $(NGINX_SRC)/conf_flags 2>/dev/null || true; } > $@.new
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@

$(OBJS)/Makefile: config $(BUILD_DIR)/configured
	rm -rf $(BUILD_DIR)/nginx $(OBJS)
	mkdir -p $(BUILD_DIR)/nginx
	ln -s $(abspath $(NGINX_SRC))/* $(BUILD_DIR)/nginx/
	rm -f $(BUILD_DIR)/nginx/Makefile $(BUILD_DIR)/nginx/objs
	cd $(BUILD_DIR)/nginx && CC='$(CC)' BUILDDIR=$(OBJS) \
	    MODULE_DIR=$(ROOT) CC_OPT='$(CFLAGS) $(WARN)' LD_OPT='$(LDFLAGS)' \
	    $(ROOT)/util/configure $(NGINX_CONF_FLAGS) > $(BUILD_DIR)/configure.log \
	    || { cat $(BUILD_DIR)/configure.log >&2; exit 1; }

$(MODULE): $(OBJS)/Makefile $(SRCS) $(HDRS)
	+$(MAKE) --no-print-directory -C $(BUILD_DIR)/nginx \
	    -f $(OBJS)/Makefile modules
	cp $(OBJS)/ngx_http_kontext_module.so $@.new
	mv $@.new $@


# For the tests only: a content handler that sends a file in given pieces.

CHOP = $(BUILD_DIR)/ngx_http_chop_module.so

$(CHOP): t/chop/config t/chop/ngx_http_chop_module.c $(OBJS)/Makefile
	rm -rf $(BUILD_DIR)/chop
	cd $(BUILD_DIR)/nginx && CC='$(CC)' BUILDDIR=$(BUILD_DIR)/chop \
	    MODULE_DIR=$(ROOT)/t/chop CC_OPT='$(CFLAGS) $(WARN)' \
	    LD_OPT='$(LDFLAGS)' $(ROOT)/util/configure $(NGINX_CONF_FLAGS) \
	    > $(BUILD_DIR)/configure-chop.log \
	    || { cat $(BUILD_DIR)/configure-chop.log >&2; exit 1; }
	+$(MAKE) --no-print-directory -C $(BUILD_DIR)/nginx \
	    -f $(BUILD_DIR)/chop/Makefile modules
	cp $(BUILD_DIR)/chop/ngx_http_chop_module.so $@


# And the module with calls that fail, for t/700-faults.t: its own objects,
# linked anew.

FAULTS = $(BUILD_DIR)/ngx_http_kontext_faults_module.so

$(FAULTS): t/faults/faults.c $(MODULE)
	$(CC) $(CFLAGS) -fPIC $(NGINX_INCS:%=-I$(BUILD_DIR)/nginx/src/%) \
	    -I$(OBJS) -Ingx_kontext_module -c -o $(BUILD_DIR)/faults.o $<
	$(CC) $(CFLAGS) -shared $(LDFLAGS) -o $@ $(BUILD_DIR)/faults.o \
	    `nm $(BUILD_DIR)/faults.o | sed -n 's/.* T __wrap_/-Wl,--wrap=/p'` \
	    `find $(OBJS) -name '*.o'` -lcjson


# For util/chaos and util/soak: the walk of a zone.

$(BUILD_DIR)/zone-walk: t/chaos/zone-walk.c $(CORE) $(HDRS)
	@mkdir -p $(BUILD_DIR)
	$(CC) $(CORE_FLAGS) $(CFLAGS) -o $@ $< $(CORE) -lcjson


# Unit tests: the core without nginx, once under the sanitizers and once
# without for the tests that kill processes on purpose.

UNIT_PLAIN = test_session_crash
SAN        = -fsanitize=address,undefined -fno-sanitize-recover=undefined \
             -fno-omit-frame-pointer
CORE_FLAGS = $(WARN_ALL) -g -Ingx_kontext_module -Ingx_kontext_module/core \
             $(CMOCKA_FLAGS)

# cmocka 2 has new names and types for what cmocka 1 of Debian 12 has, too

CMOCKA_FLAGS = -Wno-pointer-sign -Wno-deprecated-declarations
UNIT_DIR   = $(BUILD_DIR)/unit

UNIT_HELP := $(filter-out unit/test_%,$(wildcard unit/*.c))
UNIT_SRCS := $(CORE) $(UNIT_HELP)
UNIT_SAN   = $(UNIT_SRCS:%.c=$(UNIT_DIR)/san/%.o)
UNIT_BARE  = $(UNIT_SRCS:%.c=$(UNIT_DIR)/plain/%.o)
UNIT_RUN   = $(foreach t,$(UNIT),$(UNIT_DIR)/$(t))

$(UNIT_DIR)/flags: FORCE
	@mkdir -p $(UNIT_DIR)
	@echo '$(CC) $(CORE_FLAGS) $(SAN)' | cmp -s - $@ \
	    || echo '$(CC) $(CORE_FLAGS) $(SAN)' > $@

$(UNIT_DIR)/san/%.o: %.c $(UNIT_DIR)/flags
	@mkdir -p $(@D)
	$(CC) $(CORE_FLAGS) -O1 $(SAN) -MMD -MP -c -o $@ $<

$(UNIT_DIR)/plain/%.o: %.c $(UNIT_DIR)/flags
	@mkdir -p $(@D)
	$(CC) $(CORE_FLAGS) -O2 -MMD -MP -c -o $@ $<

UNIT_LIBS = -lcmocka -lcjson -lpthread

$(filter-out $(UNIT_PLAIN:%=$(UNIT_DIR)/%),$(UNIT_RUN)): \
$(UNIT_DIR)/%: $(UNIT_DIR)/san/unit/%.o $(UNIT_SAN)
	$(CC) $(SAN) -o $@ $^ $(UNIT_LIBS)

$(filter $(UNIT_PLAIN:%=$(UNIT_DIR)/%),$(UNIT_RUN)): \
$(UNIT_DIR)/%: $(UNIT_DIR)/plain/unit/%.o $(UNIT_BARE)
	$(CC) -o $@ $^ $(UNIT_LIBS)

unit: $(UNIT_RUN) streams
	@util/run-unit $(UNIT_RUN)


# Random streams, splits and faults through the module's filters, without
# nginx: see fuzz/streams.c.  "make streams STREAMS=10000000" is the long run,
# SAN= makes it ten times as fast.

STREAMS      = 20000
STREAMS_SEED = 1
STREAMS_DIR  = $(BUILD_DIR)/streams$(if $(SAN),,-bare)
STREAMS_SRCS = fuzz/streams.c $(patsubst %,\
                   ngx_kontext_module/ngx_http_kontext_%.c,\
                   filter stream whole hold out answer)
STREAMS_OBJS = $(STREAMS_SRCS:%.c=$(STREAMS_DIR)/%.o) \
               $(CORE:%.c=$(if $(SAN),$(UNIT_DIR)/san,$(UNIT_DIR)/plain)/%.o)
NGINX_INCS   = core event event/modules event/quic os/unix http http/modules \
               http/v2 http/v3

$(STREAMS_DIR)/%.o: %.c $(OBJS)/Makefile
	@mkdir -p $(@D)
	$(CC) $(CORE_FLAGS) -O2 $(SAN) -MMD -MP -I$(OBJS) \
	    $(NGINX_INCS:%=-I$(BUILD_DIR)/nginx/src/%) -c -o $@ $<

$(STREAMS_DIR)/run: $(STREAMS_OBJS)
	$(CC) $(SAN) -o $@ $^ -lcjson

streams: $(STREAMS_DIR)/run
	@$< $(STREAMS_SEED) $(STREAMS) > $(STREAMS_DIR)/log 2>&1 \
	    || { cat $(STREAMS_DIR)/log; echo "fuzz/streams .. FAILED"; exit 1; }
	@cat $(STREAMS_DIR)/log

-include $(shell find $(BUILD)/unit $(BUILD)/fuzz $(BUILD)/streams* -name '*.d' 2>/dev/null)


# Fuzzers: a time box for each; a crashing input stays in $(BUILD)/fuzz.  They
# start from fuzz/corpus, which fuzz/minimise makes, and from the sample files
# beside the repository, if they are there.  fuzz/long runs them for hours; a
# build with FUZZ_WITH= has no sanitizers and is several times as fast.

FUZZ_DIR   = $(BUILD_DIR)/fuzz
FUZZ_WITH  = ,address,undefined
FUZZ_SAN   = -fsanitize=fuzzer-no-link$(FUZZ_WITH) \
             -fno-sanitize-recover=undefined
FUZZ_CORE  = $(CORE:%.c=$(FUZZ_DIR)/obj/%.o)
FUZZ_RUN   = $(FUZZ:%=run-%)
FUZZ_DICT  = $(ROOT)/fuzz/chat.dict
SAMPLES    = $(or $(KONTEXT_SHARED),../shared)/samples

# their inputs are no text

FUZZ_BARE  = fuzz_session fuzz_redact fuzz_consent fuzz_record

.PHONY: fuzzers $(FUZZ_RUN)
.SECONDARY: $(FUZZ_CORE) $(FUZZ:%=$(FUZZ_DIR)/obj/fuzz/%.o)

$(FUZZ_DIR)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(FUZZ_CC) $(CORE_FLAGS) -O1 $(FUZZ_SAN) -MMD -MP -c -o $@ $<

$(FUZZ:%=$(FUZZ_DIR)/%): $(FUZZ_DIR)/%: $(FUZZ_DIR)/obj/fuzz/%.o $(FUZZ_CORE)
	$(FUZZ_CC) -fsanitize=fuzzer$(FUZZ_WITH) -o $@ $^ -lcjson

$(FUZZ_RUN): run-%: $(FUZZ_DIR)/%
	@mkdir -p $(FUZZ_DIR)/corpus/$* $(FUZZ_DIR)/seeds/$*
	@fuzz/seeds $* $(SAMPLES) $(FUZZ_DIR)/seeds/$*
	@cd $(FUZZ_DIR) && ./$* -max_total_time=$(FUZZ_SECONDS) -timeout=5 \
	    -rss_limit_mb=2048 -print_final_stats=1 \
	    $(if $(filter $*,$(FUZZ_BARE)),,-dict=$(FUZZ_DICT)) \
	    corpus/$* seeds/$* \
	    $(wildcard $(ROOT)/fuzz/corpus/$*) > $*.log 2>&1 \
	    || { tail -n 60 $*.log; echo "fuzz/$* .. FAILED"; exit 1; }
	@echo "fuzz/$* .. ok, `sed -n 's/.*executed_units: *//p' \
	    $(FUZZ_DIR)/$*.log` runs"

fuzz: $(FUZZ_RUN)
	@test -n "$(FUZZ_RUN)"

fuzzers: $(FUZZ:%=$(FUZZ_DIR)/%)


# Test::Nginx.  Ports and server roots are random so that files run side by
# side.

PROVE = TEST_NGINX_BINARY=$(NGINX_BIN) TEST_NGINX_RANDOMIZE=1 \
        TEST_NGINX_SERVROOT=$(BUILD_DIR)/servroot \
        TEST_NGINX_LOAD_MODULES="$(wildcard $(ECHO_MODULE)) $(MODULE)" \
        KONTEXT_BUILD=$(BUILD_DIR)

nginx-tests: module $(CHOP) $(FAULTS)
	@mkdir -p $(BUILD_DIR)
	$(PROVE) prove -j $(PROVE_JOBS) -It/lib -r $(T)

# each call of t/700-faults.t, not one of five

test-faults: T = t/700-faults.t
test-faults: PROVE += KONTEXT_FAULT_STEP=1
test-faults: nginx-tests

test: unit style nginx-tests

style:
	util/style --self-test
	util/style

lint:
	cppcheck --quiet --std=c99 --enable=warning,portability \
	    --inline-suppr --error-exitcode=1 -j 2 \
	    --suppress=missingIncludeSystem $(CORE)

test-valgrind: PROVE += TEST_NGINX_USE_VALGRIND=1 TEST_NGINX_SLEEP=1
test-valgrind: nginx-tests

test-versions:
	util/test-versions


# lines and branches that the unit tests and t/ run

coverage:
	BUILD=$(BUILD) CC='$(CC)' PROVE_JOBS=$(PROVE_JOBS) \
	    util/coverage $(filter-out t,$(T))


# The same t/ with an nginx of our own under AddressSanitizer, where each
# pool allocation is a malloc() of its own; UBSan watches the module.  Answers
# are cut at every so many bytes, not at each one.

SPLIT_STEP = 11

ASAN_NGINX = $(or $(KONTEXT_CACHE),$(BUILD_DIR))/asan-nginx

ASAN_MAKE = $(MAKE) --no-print-directory BUILD=$(BUILD)/asan \
            NGINX_SRC=$(ASAN_NGINX)/source NGINX_BIN=$(ASAN_NGINX)/nginx \
            NGINX_CONF_FLAGS="$$(cat $(ASAN_NGINX)/conf_flags)" \
            CC='$(CC)' CFLAGS='-O1 -g $(SAN) -DNGX_DEBUG_PALLOC=1' \
            LDFLAGS='$(SAN)'

test-asan:
	util/asan-nginx $(ASAN_NGINX)
	+KONTEXT_SPLIT_STEP=$(SPLIT_STEP) KONTEXT_FAULT_STEP=$(SPLIT_STEP) \
	    util/sanitized $(BUILD_DIR)/asan-reports \
	    $(ASAN_MAKE) nginx-tests T='$(T)' PROVE_JOBS='$(PROVE_JOBS)'

# And a time box for random chats through that nginx: fuzz/whole.mjs.

WHOLE_SECONDS = 10

fuzz-whole:
	util/asan-nginx $(ASAN_NGINX)
	+$(ASAN_MAKE) module
	KONTEXT_BUILD=$(BUILD_DIR)/asan TEST_NGINX_BINARY=$(ASAN_NGINX)/nginx \
	    util/sanitized $(BUILD_DIR)/whole-reports \
	    node fuzz/whole.mjs $(WHOLE_SECONDS) $(WHOLE_SEED)


install: module
	install -d $(DESTDIR)$(MODULES_DIR) $(DESTDIR)$(CONF_DIR)
	install -m 644 $(MODULE) $(DESTDIR)$(MODULES_DIR)/
	install -m 644 conf/*.conf $(DESTDIR)$(CONF_DIR)/

clean:
	rm -rf $(BUILD_DIR) t/servroot*
