package expect_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"portcullis/attestserver/protocol"
	"portcullis/images/manifest"
	"portcullis/internal/config"
)

// TestRackForBench is the PCs of bench/attest, with what pxed and gatewayd say of them:
//
//	PORTCULLIS_RACK_DIR   sockets, image, attestd's configuration, its state
//	PORTCULLIS_RACK_PCS   how many
//	PORTCULLIS_RACK_MEAN  gap between challenges, such as 2s
//	PORTCULLIS_RACK_CHIPS not empty: each PC has a softChip, and nothing else is asked
//	PORTCULLIS_RACK_THINK how long a chip takes for an answer on average, such as 200ms; empty: as long as it does
//	PORTCULLIS_RACK_LOG   what its firmware has measured; empty: 18 events, written for tests
//
// It ends with its standard input. Without the directory it does nothing.
func TestRackForBench(t *testing.T) {
	if os.Getenv(rackEnv) != "" {
		agentsForBench(t)
	}
}

// slowChip takes its time, as a chip does: each answer another, from half of mean to one
// and a half.
type slowChip struct {
	*softChip
	mean time.Duration
}

func (c *slowChip) Run(ctx context.Context, key protocol.OpKey, params []byte) (protocol.Output, error) {
	if c.mean > 0 {
		time.Sleep(c.mean/2 + rand.N(c.mean))
	}
	return c.softChip.Run(ctx, key, params)
}

const rackEnv = "PORTCULLIS_RACK_DIR"

func rackFromEnv(t testing.TB) *rackSetup {
	t.Helper()
	pcs, err := strconv.Atoi(os.Getenv("PORTCULLIS_RACK_PCS"))
	if err != nil {
		t.Fatal(err)
	}
	mean, err := time.ParseDuration(os.Getenv("PORTCULLIS_RACK_MEAN"))
	if err != nil {
		t.Fatal(err)
	}
	r := newRack(t, os.Getenv(rackEnv), pcs, mean, nil)
	for op := range r.m.probes {
		r.ops = append(r.ops, op)
	}
	r.chip = os.Getenv("PORTCULLIS_RACK_CHIPS") != ""
	if r.think, err = time.ParseDuration(cmp.Or(os.Getenv("PORTCULLIS_RACK_THINK"), "0s")); err != nil {
		t.Fatal(err)
	}
	r.sign()
	return r
}

// sign makes the signed image the machine's own: root image, kernel, mask, and a command
// line and a device with the root hash that the manifest names.
func (r *rackSetup) sign() {
	v := &r.image.Manifest.Verity
	root, err := os.ReadFile(r.m.path("root.img"))
	r.m.check(err)
	v.DataBlocks = uint64((len(root) + protocol.BlockSize - 1) / protocol.BlockSize)
	v.HashStart = v.DataBlocks
	root = append(root, make([]byte, int(v.HashStart+1)*protocol.BlockSize-len(root))...)
	kernel, err := os.ReadFile(r.m.path(manifest.Kernel))
	r.m.check(err)
	for i, a := range r.image.Manifest.Artefacts {
		content := map[string][]byte{manifest.Root: root, manifest.Kernel: kernel}[a.Name]
		if content == nil {
			continue
		}
		r.image.Manifest.Artefacts[i], err = manifest.Describe(a.Name, bytes.NewReader(content))
		r.m.check(err)
		r.m.check(os.WriteFile(filepath.Join(r.image.Dir, a.Name), content, 0o600))
	}
	r.image.Manifest.Cmdline = fmt.Sprintf("roothash=%s portcullis.verity=%s,%d,%d", v.RootHash, v.Salt, v.DataBlocks, v.HashStart)
	r.image.Manifest.Mask = r.m.image.Manifest.Mask
	softBooted(r.t, &r.image.Manifest)
	r.image.Sign(r.t)
	r.m.write([]byte(r.image.Manifest.Cmdline+"\n"), "proc/cmdline")
	r.m.write(root, "dev/loop0")
	r.m.verity.RootHash, r.m.verity.Salt, r.m.verity.DataBlocks, r.m.verity.HashStart = v.RootHash, v.Salt, v.DataBlocks, v.HashStart
	began := time.Now()
	r.m.host.Clocks = func() (raw, boot, wall int64, err error) {
		up := r.m.uptime + time.Since(began)
		return up.Nanoseconds(), up.Milliseconds(), began.Add(-r.m.uptime).UnixMilli() + up.Milliseconds(), nil
	}
	r.m.startAgent()
}

// configFile is where attestd's configuration is left when all else is there.
const configFile = "portcullis.yaml"

// configure writes attestd's configuration and key: each PC has an address of loopback.
func (r *rackSetup) configure() (addresses []string) {
	const port = 7443
	der, err := x509.MarshalPKCS8PrivateKey(r.image.GatewayKey)
	r.m.check(err)
	key := filepath.Join(r.dir, "gateway.key")
	r.m.check(os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	text := strings.NewReplacer("run_dir: /run/portcullis ", "run_dir: "+r.dir+" ", "state_dir: /var/lib/portcullis ", "state_dir: "+r.dir+"/state ",
		"/var/lib/portcullis/images/hpc", r.image.Dir, "/var/lib/portcullis/attestd/gateway.key", key,
		"mean_gap: 5s", "mean_gap: "+r.mean.String(), "min_gap: 200ms", "min_gap: "+min(r.mean/10, 200*time.Millisecond).String(),
		"noise_mib: 16", "noise_mib: 0", "allow_lab_image: false", "allow_lab_image: true").
		Replace(config.Example(base64.StdEncoding.EncodeToString(r.image.Trust.ReleaseKeys[0])))
	var pcs []string
	for i := range r.pcs {
		address := fmt.Sprintf("127.77.%d.%d", i/250, 1+i%250)
		addresses = append(addresses, net.JoinHostPort(address, strconv.Itoa(port)))
		pcs = append(pcs, fmt.Sprintf("{name: %s, address: %s, mac: '52:54:01:00:%02x:%02x'}", pcName(i), address, i>>8, i&255))
	}
	text = strings.Replace(text, "pcs: [] ", "pcs: ["+strings.Join(pcs, ", ")+"] ", 1)
	at := filepath.Join(r.dir, configFile)
	_, err = config.Parse(at, []byte(text))
	r.m.check(err)
	r.m.check(os.WriteFile(at+".new", []byte(text), 0o600))
	r.m.check(os.Rename(at+".new", at))
	return addresses
}

func agentsForBench(t *testing.T) {
	r := rackFromEnv(t)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { io.Copy(io.Discard, os.Stdin); cancel() }()
	if err := r.serve(ctx); err != nil {
		t.Fatal(err)
	}
	r.agents(ctx, r.configure(), func(string) {})
}
