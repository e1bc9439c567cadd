package config

import "fmt"

// Example is a whole file with every key, for help texts and documents.
// releaseKey is a base64 Ed25519 public key.
func Example(releaseKey string) string {
	return fmt.Sprintf(`# One file for every service of the Pi; unknown keys are refused.
run_dir: /run/portcullis            # unix sockets
state_dir: /var/lib/portcullis      # journals, keys, references

link:                               # the cable between the Pi and the PC
  interface: eth1
  address: 10.77.0.1/24
  pc_address: 10.77.0.2
  pc_mac: "52:54:00:12:34:56"       # the one PC that is answered

gateway:
  uplink: eth0                      # "" = the PC reaches nothing outside, grants or not
  ban_after: 5                      # forbidden packets within ban_window
  ban_window: 1m
  ban_for: 10m
  nflog_group: 77
  allowed_uids: [971, 972, 974]     # pxed, attestd and the tamper policy

pxe:
  image_dir: /var/lib/portcullis/images/hpc
  release_keys:                     # who may sign the PC's image
    - %s
  threshold: 1                      # of them
  min_version: 0
  http_port: 80
  claim_window: 2m                  # after the last byte was served
  allow_bios: false                 # unmeasured legacy boot
  allow_lab_image: false            # an image with a root command channel
  allowed_uids: [972]

attest:
  port: 7443
  key_file: /var/lib/portcullis/attestd/gateway.key
  mean_gap: 5s                      # gaps are exponential, at most 3 times this
  min_gap: 200ms
  deadline: 10s
  rekey: 10m                        # a new key exchange with the agent about that often
  # policy_file: /var/lib/portcullis/attestd/policy.yaml   # without it the built-in one: portcullis policy show
  webhooks: []                      # {name: ops, url: https://…, secret_file: /…, ca_file: /…}
  power:
    ladder: [agent]                 # how reboot and power_off take the PC down: agent, relay-reset, relay-power, wake, hook
    within: 2m                      # what a rung has to show
    off_time: 10s                   # before relay-power switches on again
  noise_mib: 16                     # memory of the PC that is kept filled with noise
  containers: []                    # approved images, as "sha256:…" that docker prints as their ID
  ask_listen: ""                    # 192.168.1.5:7445: where peers and tools may POST /attest; "" = nowhere
  pcs: []                           # several PCs: {name: rack-1, address: 10.77.1.1, mac: …}, our address on the port of each
  allowed_uids: []
  operator_keys: []                 # who may approve a changed fingerprint, like release_keys

power:                              # the services behind the rungs relay-… and hook
  hook:                             # reset and off: [/absolute/path, argument, …]
    timeout: 30s
  allowed_uids: [972]

# Docker on the Pi: who, beside root, may speak to its guard.
verifier:
  allowed_uids: []
  listen: ""                        # 192.168.1.5:7444: where other nodes read the log of approvals; "" = nowhere
  witnesses: []                     # {url: https://…, key: name+hash+key} of other Pis
  quorum: 0                         # of them must have signed before an approval takes effect
  witness_name: ""                  # of this Pi as a witness of others; needs listen
  witness_logs: []                  # public keys of their logs: portcullis approvals status
  services: []                      # run as containers of approved images: [pxed, attestd]; the others are units
`, releaseKey)
}
