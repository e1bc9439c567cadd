/* A library with the interface of zk_app_utils.h for tests: it follows the header's
 * contract (buffers from malloc that the caller frees, negative errno for failure) and
 * protects nothing. A file "breach" in $ZKSTUB_STATE is a perimeter event. */
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef void *zkCTX;
static int context;

static void path(char *out, size_t n) { snprintf(out, n, "%s/breach", getenv("ZKSTUB_STATE")); }
static bool is(zkCTX c) { return c == &context; }

int zkOpen(zkCTX *c) { *c = &context; return 0; }
int zkClose(zkCTX c) { return is(c) ? 0 : -EINVAL; }

int zkGetRandBytes(zkCTX c, uint8_t **out, int n)
{
	if (!is(c) || n < 1) return -EINVAL;
	*out = malloc(n);
	FILE *f = fopen("/dev/urandom", "r");
	size_t got = fread(*out, 1, n, f);
	fclose(f);
	return got == (size_t)n ? 0 : -EIO;
}

static uint8_t sum(const uint8_t *b, int n) { uint8_t s = 7; while (n--) s = s * 31 + *b++; return s; }

int zkLockDataB2B(zkCTX c, const uint8_t *src, int n, uint8_t **dst, int *dn, bool shared)
{
	if (!is(c) || shared) return -EINVAL;
	*dn = n + 1;
	*dst = malloc(*dn);
	for (int i = 0; i < n; i++) (*dst)[i] = src[i] ^ 0xa5;
	(*dst)[n] = sum(src, n);
	return 0;
}

int zkUnlockDataB2B(zkCTX c, const uint8_t *src, int n, uint8_t **dst, int *dn, bool shared)
{
	if (!is(c) || shared || n < 2) return -EINVAL;
	uint8_t *p = malloc(n - 1);
	for (int i = 0; i < n - 1; i++) p[i] = src[i] ^ 0xa5;
	if (sum(p, n - 1) != src[n - 1]) { free(p); return -EBADMSG; }
	*dst = p;
	*dn = n - 1;
	return 0;
}

int zkGenECDSASigFromDigest(zkCTX c, const uint8_t *digest, int slot, uint8_t **sig, int *n)
{
	if (!is(c) || slot > 2) return -EINVAL;
	*n = 64;
	*sig = calloc(1, 64);
	memcpy(*sig, digest, 32);
	return 0;
}

int zkExportPubKey(zkCTX c, uint8_t **key, int *n, int slot, bool foreign)
{
	if (!is(c) || slot > 2 || foreign) return -EINVAL;
	*n = 64;
	*key = malloc(64);
	memset(*key, 1, 64);
	return 0;
}

int zkGetModelNumberString(zkCTX c, char **s) { *s = strdup("ZK-STUB"); return is(c) ? 0 : -EINVAL; }
int zkGetSerialNumberString(zkCTX c, char **s) { *s = strdup("0123456789"); return is(c) ? 0 : -EINVAL; }
int zkGetFirmwareVersionString(zkCTX c, char **s) { *s = strdup("01.00.00"); return is(c) ? 0 : -EINVAL; }

int zkWaitForPerimeterEvent(zkCTX c, uint32_t ms)
{
	char p[4096];
	path(p, sizeof p);
	if (!is(c)) return -EINVAL;
	if (access(p, F_OK) == 0) return 0;
	usleep(ms * 1000);
	return access(p, F_OK) == 0 ? 0 : -ETIMEDOUT;
}

int zkGetPerimeterDetectInfo(zkCTX c, uint32_t **times, int *n)
{
	if (!is(c)) return -EINVAL;
	*n = 2;
	*times = calloc(2, sizeof **times);
	(*times)[1] = 1700000000;
	return 0;
}

int zkClearPerimeterDetectEvents(zkCTX c)
{
	char p[4096];
	path(p, sizeof p);
	unlink(p);
	return is(c) ? 0 : -EINVAL;
}

int zkLEDOn(zkCTX c) { return is(c) ? 0 : -EINVAL; }
int zkLEDOff(zkCTX c) { return is(c) ? 0 : -EINVAL; }
int zkLEDFlash(zkCTX c, uint32_t on, uint32_t off, uint32_t times) { return is(c) && on && off && times < 100 ? 0 : -EINVAL; }
