// Package attack plays a PC on the cable: it asks for a boot as UEFI HTTP Boot
// does, fetches artefacts, claims, answers, and can do each of them wrongly.
// Scenarios of the lab use it where a real machine would only take longer.
package attack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/insomniacslk/dhcp/iana"

	"portcullis/images/manifest"
	"portcullis/internal/netns"
)

// ErrNoOffer is a boot request that nobody answered.
var ErrNoOffer = errors.New("no offer")

// PC is a machine at the PC's port.
type PC struct {
	Host    *netns.Host
	Link    string // its interface
	MAC     string
	Address netip.Prefix // what it takes when leased
	leased  bool
}

// Boot is a boot session as the PC sees it.
type Boot struct {
	URL     string // of the UKI
	Base    string // URL up to and with the last slash
	Session string
}

// offerWait is how long one DISCOVER waits; firmware waits 4 s and more.
const offerWait = 3 * time.Second

// Ask sends one boot request and, when it is offered, takes the lease.
func (p *PC) Ask(ctx context.Context) (*Boot, error) {
	hw, err := net.ParseMAC(p.MAC)
	if err != nil {
		return nil, err
	}
	var c *nclient4.Client
	if err := p.Host.Do(func() (err error) {
		c, err = nclient4.New(p.Link, nclient4.WithHWAddr(hw), nclient4.WithTimeout(offerWait), nclient4.WithRetry(1))
		return err
	}); err != nil {
		return nil, fmt.Errorf("attack: DHCP socket: %w", err)
	}
	defer c.Close()
	mods := []dhcpv4.Modifier{
		dhcpv4.WithOption(dhcpv4.OptClassIdentifier("HTTPClient:Arch:00016:UNDI:003000")),
		dhcpv4.WithOption(dhcpv4.OptClientArch(iana.EFI_X86_64_HTTP)),
		dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionClientNetworkInterfaceIdentifier, []byte{1, 3, 0})),
		dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionClientMachineIdentifier, make([]byte, 17))),
		dhcpv4.WithRequestedOptions(dhcpv4.OptionBootfileName, dhcpv4.OptionTFTPServerName),
		dhcpv4.WithBroadcast(true),
	}
	offer, err := c.DiscoverOffer(ctx, mods...)
	if errors.Is(err, nclient4.ErrNoResponse) {
		return nil, ErrNoOffer
	}
	if err != nil {
		return nil, fmt.Errorf("attack: DISCOVER: %w", err)
	}
	lease, err := c.RequestFromOffer(ctx, offer, mods...)
	if err != nil {
		return nil, fmt.Errorf("attack: REQUEST: %w", err)
	}
	if !p.leased {
		if err := p.Host.Address(p.Link, p.Address); err != nil {
			return nil, err
		}
		p.leased = true
	}
	return parseBoot(lease.ACK.BootFileNameOption(), lease.ACK.BootFileName)
}

func parseBoot(option, header string) (*Boot, error) {
	url := strings.TrimRight(option, "\x00")
	if url == "" {
		url = header
	}
	base, ok := strings.CutSuffix(url, manifest.UKI)
	parts := strings.Split(strings.TrimSuffix(base, "/"), "/")
	if !ok || len(parts) < 2 {
		return nil, fmt.Errorf("attack: boot file %q is no URL of %s", url, manifest.UKI)
	}
	return &Boot{URL: url, Base: base, Session: parts[len(parts)-1]}, nil
}

// Fetch gets one artefact of a boot and hands its bytes to w.
func (p *PC) Fetch(ctx context.Context, b *Boot, name string, w io.Writer) error {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return p.Host.Dial(ctx, network, address)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.Base+name, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("attack: %s: %w", name, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("attack: %s: %s", name, resp.Status)
	}
	_, err = io.Copy(w, resp.Body)
	return err
}
